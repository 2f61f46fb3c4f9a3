"""Run a command with its output in a log file; on failure the end of the log is the message."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

TAIL_LINES = 30
STOP_SECONDS = 5


class SetupError(Exception):
    """The setup cannot go on; the text says why and what to do."""


def ignore(line: str) -> None:
    """Read nothing from the output."""


def run(
    command: Sequence[str],
    log: Path,
    on_line: Callable[[str], None] = ignore,
    env: dict[str, str] | None = None,
) -> None:
    """Run to the end, each line of output going to ``log`` and ``on_line`` as it appears.

    Whatever stops us (Ctrl-C too) stops the command and its children.

    Raises:
        SetupError: when the command fails, with the last lines of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | (env or {}) | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    with log.open("w", encoding="utf-8", buffering=1) as file, process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                on_line(line)
            code = process.wait()
        except BaseException:
            stop(process)
            raise
    if code != 0:
        tail = log.read_text(encoding="utf-8").splitlines()[-TAIL_LINES:]
        said = ["a command failed; the end of its output:", *tail, f"the whole log: {log}"]
        raise SetupError("\n".join(said))


def stop(process: subprocess.Popen[str]) -> None:
    """End the process group of a command that ``run`` started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
