"""What the stages of a training take, told on stderr as each of them ends."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


class Stages:
    """Wall time since it was made, and of each stage.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._began = clock, clock()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; said only if it comes to its end."""
        began = self._clock()
        yield
        _say(name, self._clock() - began)

    def end(self) -> None:
        """Say what all took, the time between stages included."""
        _say("in all", self._clock() - self._began)


def _say(name: str, seconds: float) -> None:
    print(f"{name:<12}{seconds:8.1f} s", file=sys.stderr, flush=True)
