"""The native small-batch kernels: offered to ggml before the first model is loaded, or left out.

Knows how the library is found, checked and registered; nothing of what it computes. Whatever does
not fit (version, processor, a build without it) leaves llama.cpp as it is, with one log line.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

logger = logging.getLogger("gorgon.kernels")

# Inside the package; an editable install keeps it in site-packages, apart from the sources.
LIBRARY = Path("_native") / "libgorgon_kernels.so"

# What native/ggml/ was taken from: internal structures of ggml, good for this version alone.
LLAMA_CPP_PYTHON = "0.3.36"
GGML_VERSION = "0.25.3"
GGML_COMMIT = "0c1e570"

# The names under which the wheel's libllama loads them: looked up, never loaded a second time.
GGML_LIBRARIES = ("libggml-base.so.0", "libggml-cpu.so.0")

INTERFACE = 7  # of native/registration.cpp: what this package relies on

_P, _N = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS: tuple[tuple[Any, ...], ...] = (  # name, result, arguments
    ("interface", ctypes.c_int),
    ("register", ctypes.c_char_p, ctypes.c_char_p),
    ("take", None, ctypes.c_bool, ctypes.c_bool),
    ("packs", ctypes.c_bool, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    ("buffer_type", _P),
    ("likeliest", _N, _P, _N),
    ("draw", _N, ctypes.c_uint64, _N, _P, _N, ctypes.c_float),
    ("draw_among", _N, ctypes.c_uint64, _N, _P, _N),
    ("find_best", None),  # called by ggml
    ("rank", None, _P, _N, _N, _N, _P, _P, _N, _P, _P),
    ("draft", _N, _P, _P, _P, _P, _P, _P, _P),
    ("num_products", ctypes.c_int64),
    ("num_attentions", ctypes.c_int64),
)


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """Whether the kernels are in place; ``reason`` says why not, or is "registered"."""

    active: bool
    isa: str | None
    reason: str


class _StayOutError(Exception):
    """Why the kernels are not to be used."""


@functools.cache
def load() -> KernelStatus:
    """Register the kernels with ggml, once per process and before the first model is loaded.

    ``GORGON_KERNELS=0`` keeps them out; ``GORGON_KERNELS_ISA`` (``avx512``, ``avxvnni``, ``avx2``)
    forces an instruction set; ``GORGON_KERNELS_LIBRARY`` names another build of the library.
    """
    try:
        isa = _register()
    except (_StayOutError, OSError) as error:
        status = KernelStatus(active=False, isa=None, reason=str(error))
        logger.info("llama.cpp's own kernels: %s", status.reason)
    else:
        status = KernelStatus(active=True, isa=isa, reason="registered")
        logger.info("small-batch kernels registered: %s", isa)
    return status


def take(*, weights: bool, attention: bool) -> None:
    """Choose what the kernels take over from now on, to compare them with llama.cpp's own.

    Args:
        weights: pack the weights of models loaded from now on.
        attention: compute the attention of all models; change it only between two decodes.
    """
    if load().active:
        _library().gorgon_kernels_take(weights, attention)


@functools.cache
def _library() -> Any:
    path = _library_path()
    library = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    for name, result, *arguments in _FUNCTIONS:
        function = getattr(library, f"gorgon_kernels_{name}", None)
        if function is None:
            raise _StayOutError(f"{path} is of another version; run scripts/setup")
        function.restype, function.argtypes = result, arguments
    if library.gorgon_kernels_interface() != INTERFACE:
        raise _StayOutError(f"{path} is of another version; run scripts/setup")
    return library


def functions() -> Any | None:
    """Those of native/sampling.cpp and guesses.cpp; None when the kernels are left out."""
    return _library() if load().active else None


def num_operations() -> tuple[int, int]:
    """How many products and attentions our kernels have computed in this process."""
    if not load().active:
        return 0, 0
    return int(_library().gorgon_kernels_num_products()), int(
        _library().gorgon_kernels_num_attentions()
    )


def packs(kind: int, shape: tuple[int, ...]) -> bool:
    """Whether a weight is held in our layout, and its products computed by our kernels.

    Args:
        kind: ggml type.
        shape: contiguous dimension first, ``(columns, rows)``.
    """
    if not load().active or len(shape) != 2:
        return False
    return bool(_library().gorgon_kernels_packs(kind, *shape))


def buffer_type() -> int | None:
    """The ``ggml_backend_buffer_type_t`` that packs weights, for tensors placed by hand.

    Only what ``packs`` accepts may be placed there, and written in whole groups of 16 rows.
    None when the kernels are left out.
    """
    if not load().active:
        return None
    return int(_library().gorgon_kernels_buffer_type())


def _library_path() -> Path:
    named = os.environ.get("GORGON_KERNELS_LIBRARY")
    packages = [Path(__file__).parent.parent, *(Path(entry) / "gorgon" for entry in sys.path)]
    for path in [Path(named)] if named else [package / LIBRARY for package in packages]:
        if path.exists():
            return path
    raise _StayOutError("the native library was not built")


def _register() -> str:
    if os.environ.get("GORGON_KERNELS", "1") == "0":
        raise _StayOutError("GORGON_KERNELS=0")
    _check_version()
    wanted = os.environ.get("GORGON_KERNELS_ISA", "")
    isa = _library().gorgon_kernels_register(wanted.encode())
    if isa is None:
        raise _StayOutError(f"this processor does not run {wanted or 'any of AVX-512 VNNI, AVX2'}")
    return bytes(isa).decode()


def _check_version() -> None:
    """Put ggml's symbols in reach of our library, and see that they are the known ones."""
    if llama_cpp.__version__ != LLAMA_CPP_PYTHON:
        raise _StayOutError(
            f"built for llama-cpp-python {LLAMA_CPP_PYTHON}, found {llama_cpp.__version__}"
        )
    if not hasattr(os, "RTLD_NOLOAD"):
        raise _StayOutError("this platform cannot look up loaded libraries")
    base, _cpu = (
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW | os.RTLD_GLOBAL)
        for name in GGML_LIBRARIES
    )
    for function in (base.ggml_version, base.ggml_commit):
        function.restype = ctypes.c_char_p
    version, commit = base.ggml_version().decode(), base.ggml_commit().decode()
    if version != GGML_VERSION or not (commit.startswith(GGML_COMMIT) or commit == "unknown"):
        raise _StayOutError(
            f"built for ggml {GGML_VERSION} {GGML_COMMIT}, found {version} {commit}"
        )
