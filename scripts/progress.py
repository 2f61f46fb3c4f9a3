"""How far a piece of work is, shown on one line of a terminal or as a few lines of a log.

Knows nothing of what is built; it reads the lines that ninja or make print.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\] ")
MAKE_STEP = re.compile(r"\s*\[\s*(\d+)%\] ")
MIN_STEPS = 5
BAR_WIDTH = 20
REDRAW_SECONDS = 0.5


class Progress:
    """The finished fraction of a build, from its output."""

    def __init__(self) -> None:
        self.fraction = 0.0
        self._num_steps = 0

    def read(self, line: str) -> None:
        """Take in one line of output; lines without a step count change nothing.

        The run with the most steps counts; short ones (trying the compiler) never do.
        """
        if match := NINJA_STEP.match(line):
            done, num_steps = int(match[1]), int(match[2])
        elif match := MAKE_STEP.match(line):
            done, num_steps = int(match[1]), 100
        else:
            return
        if num_steps < MIN_STEPS:
            return
        if num_steps > self._num_steps:
            self._num_steps = num_steps
            self.fraction = done / num_steps
        elif num_steps == self._num_steps:
            self.fraction = max(self.fraction, done / num_steps)


def format_seconds(seconds: float) -> str:
    """``3.2 s`` below a minute, ``4:46`` above."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


class Task:
    """A titled piece of work: shows how far it is and, at the end, how long it took.

    On a terminal one line is drawn again and again; elsewhere a line is added every 10 %.
    """

    def __init__(self, title: str, stream: TextIO = sys.stdout) -> None:
        self.title = title
        self._progress = Progress()
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._printed_tenths = 0
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._drawer = threading.Thread(target=self._draw_until_ended, daemon=True)

    def read(self, line: str) -> None:
        """Take in one line that the work printed."""
        self._progress.read(line)
        tenths = int(self._progress.fraction * 10)
        if not self._is_terminal and tenths > self._printed_tenths:
            line_break = "" if self._printed_tenths else "\n"
            self._printed_tenths = tenths
            self._write(f"{line_break}  {tenths * 10:3} % after {self._elapsed()}\n")

    def __enter__(self) -> Self:
        self._write(self.title + " ...")
        if self._is_terminal:
            self._drawer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._is_terminal:
            self._drawer.join()
            self._write(f"\r\x1b[K{self.title} ...")
        elif self._printed_tenths:
            self._write(f"{self.title} ...")
        outcome = self._elapsed() if kind is None else f"failed after {self._elapsed()}"
        self._write(f" {outcome}\n")

    def _draw_until_ended(self) -> None:
        while not self._ended.wait(REDRAW_SECONDS):
            fraction = self._progress.fraction
            bar = ""
            if fraction:
                filled = round(fraction * BAR_WIDTH)
                bar = f" [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {fraction:4.0%}"
            line = f"{self.title}{bar} {self._elapsed()}"
            self._write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])

    def _elapsed(self) -> str:
        return format_seconds(time.monotonic() - self._started)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
