"""The shared libraries of the llama-cpp-python wheel: loaded once, quiet, with typed functions.

Importing this module loads llama.cpp. Log lines of llama.cpp go to the logger ``gorgon.llama``;
its recent errors are kept, because most of its functions answer only NULL.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp

llama: Any = llama_cpp.llama_cpp

logger = logging.getLogger("gorgon.llama")

SUPPORTED_VERSION = "0.3.36"
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5
_recent: collections.deque[str] = collections.deque(maxlen=20)


@llama.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _on_log(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    message = text.decode("utf-8", "replace").rstrip("\n")
    if level == _CONTINUE or not message.strip(" ."):
        return
    if level >= 4:
        _recent.append(message)
    logger.log(_LEVELS.get(level, logging.DEBUG), message)


llama.llama_log_set(_on_log, ctypes.c_void_p(0))
llama.llama_backend_init()


@contextlib.contextmanager
def collect_errors() -> Iterator[list[str]]:
    """Gather what llama.cpp logs as errors inside the block; the list is filled on leaving it."""
    _recent.clear()
    errors: list[str] = []
    try:
        yield errors
    finally:
        errors.extend(_recent)


def address_function(name: str) -> Callable[[Any], int]:
    """llama.cpp's ``name``, which takes a context or model and gives an address, as a number."""
    function: Any = llama._lib[name]
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return function  # type: ignore[no-any-return]


def library_version() -> str:
    """Which llama.cpp computes here."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def library_path(name: str) -> Path:
    """The shared library ``name`` (``ggml-base``, ``ggml-cpu``, ...) that the wheel loaded."""
    base = Path(llama._lib._name).parent
    for suffix in (".so", ".dylib"):
        path = base / f"lib{name}{suffix}"
        if path.exists():
            return path
    raise FileNotFoundError(f"lib{name} is not beside {llama._lib._name}")
