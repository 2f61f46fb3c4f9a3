"""Servers that the benchmark starts itself, one process each, and stops at the end."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gorgon.errors import BenchError

START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Server:
    """A running child."""

    url: str
    pid: int
    command: list[str]


@contextlib.contextmanager
def start(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Run a server until the block is left; it is there once ``ready`` answers 200.

    Raises:
        BenchError: when it ends or does not get ready, with the end of its output.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                list(command), stdout=log, stderr=log, env=os.environ | environment
            )
        except OSError as error:
            raise BenchError(f"cannot start {command[0]}: {error}") from error
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(url + ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read().decode("utf-8", "replace")[-_TAIL:]
                    raise BenchError(f"{' '.join(command)} did not start:\n{tail}")
                time.sleep(0.2)
            yield Server(url, process.pid, list(command))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    """Whether a GET of ``url`` gives 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gorgon_command(port: int, arguments: Sequence[str]) -> list[str]:
    """Our own server, from this installation."""
    return [sys.executable, "-m", "gorgon.cli", "serve", "--port", str(port), *arguments]


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A llama-server binary and what it says about itself."""

    path: Path
    version: str
    draft_free: tuple[str, ...]

    @classmethod
    def probe(cls, path: Path) -> LlamaServer:
        """Ask the binary; a name that is no file here is looked for on the PATH.

        Raises:
            BenchError: when it does not run.
        """
        path = path.resolve() if path.is_file() else path
        version = _output(path, "--version")
        found = re.search(r"version: (.+)", version)
        return cls(path, found[1].strip() if found else "unknown", spec_types(_output(path, "-h")))

    def command(
        self, model: Path, port: int, threads: int, slots: int, context: int, gpu_layers: int
    ) -> list[str]:
        """``slots`` requests at a time of ``context`` tokens each, flash attention on as ours."""
        return [
            *(str(self.path), "-m", str(model), "--port", str(port), "--jinja"),
            *("-np", str(slots), "-c", str(slots * context), "-fa", "on"),
            *("-t", str(threads), "-tb", str(threads), "-ngl", str(max(gpu_layers, 0))),
        ]


def spec_types(help_text: str) -> tuple[str, ...]:
    """The values of ``--spec-type`` that need no draft model."""
    found = re.search(r"--spec-type\s+(\S+)", help_text)
    names = re.findall(r"[a-z][\w-]*", found[1]) if found else []
    return tuple(name for name in names if name != "none" and not name.startswith("draft"))


def _output(path: Path, flag: str) -> str:
    try:
        done = subprocess.run([str(path), flag], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"cannot run {path}: {error}") from error
    return done.stdout + done.stderr
