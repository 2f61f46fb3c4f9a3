"""The command line: a file per verb, each importing what it needs only when it runs."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Ctrl-C ends the process at once, as SIGTERM does: Python's way, an exception anywhere, makes
    a traceback of an import and is dropped in a callback from llama.cpp. Verbs that have
    something to undo ask for it (``gorgon.cli.interrupts``).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gorgon.cli.app import run

    run()
