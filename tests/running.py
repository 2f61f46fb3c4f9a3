"""``gorgon`` as a user runs it: a process of its own, its children, how it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 120.0
_ROOT = Path(__file__).parent.parent


class Running:
    """A process of ours."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, standard output, lines of standard error."""
        out, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, error.splitlines()

    def wait_for(self, is_there: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_there():
            assert self.process.poll() is None, "it ended before it was stopped"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def read_until(self, word: str) -> None:
        """Read standard error up to the first line with ``word`` in it."""
        assert self.process.stderr is not None
        assert any(word in line for line in self.process.stderr), f"it ended without {word!r}"

    def children(self) -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                yield int(path.parent.name)


def start(
    folder: Path, *arguments: str | Path, max_file: int | None = None, **environment: str
) -> Running:
    """``gorgon`` in ``folder``; no file may become larger than ``max_file`` bytes."""

    def prepare() -> None:
        # Where these tests run in the background a shell may have told them to ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if max_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))

    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GORGON_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gorgon.cli", *map(str, arguments)],
        cwd=folder,
        env={
            **inherited,
            "PYTHONPATH": str(_ROOT),
            "GORGON_PROFILE_FOLDER": str(folder),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,  # noqa: PLW1509 - nothing here has threads
    )
    return Running(process)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
