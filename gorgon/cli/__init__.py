"""The command line: a file per verb, each importing what it needs only when it runs."""

from gorgon.cli.app import main

__all__ = ["main"]
