"""Progress on a terminal: one bar a stage, with the time left; plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import TimeElapsedColumn as ElapsedColumn

OnProgress = Callable[[float], None]
_TENTH = 0.1
_QUIET_SECONDS = 2.0  # between two lines


@contextlib.contextmanager
def stage(console: Console, title: str) -> Iterator[OnProgress]:
    """Show ``title`` while the block runs; it calls what it is given with the fraction done."""
    if console.is_terminal:
        with _bar(console, title) as draw:
            yield draw
        return
    lines = _Lines(console, title)
    yield lines.print_progress
    console.print(f"{title}: done in {lines.elapsed:.1f} s", soft_wrap=True)


class _Lines:
    """A line every tenth, for logs."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._began, self._printed = time.monotonic(), 0.0
        self._quiet_until = _QUIET_SECONDS
        console.print(f"{title} ...", soft_wrap=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def print_progress(self, fraction: float) -> None:
        if fraction >= self._printed + _TENTH and self.elapsed >= self._quiet_until:
            self._printed, self._quiet_until = fraction, self.elapsed + _QUIET_SECONDS
            left = self.elapsed * (1 - fraction) / fraction
            self._console.print(
                f"{self._title}: {fraction:4.0%}, {left:.0f} s left", soft_wrap=True
            )


@contextlib.contextmanager
def _bar(console: Console, title: str) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        ElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda fraction: progress.update(task, total=1.0, completed=fraction)
        progress.update(task, total=1.0, completed=1.0)
