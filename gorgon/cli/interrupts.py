"""Ctrl-C and SIGTERM in verbs that have something to undo: files, child processes, the cursor."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODES = frozenset(128 + number for number in SIGNALS)  # as shells report them
_AGAIN_SECONDS = 0.05


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Inside the block these signals raise KeyboardInterrupt, and end the process at its end.

    Signals that are ignored stay ignored.

    Raises:
        SystemExit: 128 and the number of the signal, once everything inside is undone.
    """
    caught: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        caught.append(number)
        raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    hook = sys.unraisablehook
    try:
        sys.unraisablehook = _interrupt_again
        for number, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    except KeyboardInterrupt:
        sys.exit(128 + (caught or SIGNALS)[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _interrupt_again(dropped: sys.UnraisableHookArgs) -> None:
    """An interrupt in a callback from C, which Python drops, comes once more a moment later."""
    if dropped.exc_type is KeyboardInterrupt:
        main = threading.main_thread().ident
        threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(dropped)
