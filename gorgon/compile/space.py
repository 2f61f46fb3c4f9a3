"""Disk space, looked at before it is needed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from gorgon.errors import CompileError

_RESERVE = 64 << 20  # bytes for headers, manifest and the file system itself


def check(folder: Path, needs: Mapping[str, int]) -> None:
    """See that ``folder`` has room for all of ``needs``, bytes by what they are for.

    Raises:
        CompileError: with the amounts needed, free and missing.
    """
    needed, free = sum(needs.values()) + _RESERVE, shutil.disk_usage(folder).free
    if free < needed:
        parts = ", ".join(f"{what} {_gigabytes(size)}" for what, size in needs.items())
        raise CompileError(
            f"{folder.parent}: needs {_gigabytes(needed)} of disk ({parts}),"
            f" {_gigabytes(free)} are free; make {_gigabytes(needed - free)} room"
            " or choose another --out"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
