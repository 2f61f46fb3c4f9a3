"""The library under test, and what its C interface looks like from Python."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gorgon.llama import kernels
from gorgon.noise import Noise
from tests.native.references import Bytes, Floats

ISAS = ("avx512", "avxvnni", "avx2")


class AttentionArgs(ctypes.Structure):
    """``struct Attention`` of native/kernels.h."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("q_query", ctypes.c_size_t),
        ("q_head", ctypes.c_size_t),
        ("k", ctypes.c_void_p),
        ("k_cell", ctypes.c_size_t),
        ("k_head", ctypes.c_size_t),
        ("k_type", ctypes.c_int),
        ("v", ctypes.c_void_p),
        ("v_cell", ctypes.c_size_t),
        ("v_head", ctypes.c_size_t),
        ("v_type", ctypes.c_int),
        ("mask", ctypes.c_void_p),
        ("mask_query", ctypes.c_size_t),
        ("out", ctypes.c_void_p),
        ("num_queries", ctypes.c_int),
        ("num_heads", ctypes.c_int),
        ("num_kv_heads", ctypes.c_int),
        ("num_cells", ctypes.c_int),
        ("dim_k", ctypes.c_int),
        ("dim_v", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("positions", ctypes.c_void_p),
        ("seen_as", ctypes.c_uint64),
    )


BARRIER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Worker(ctypes.Structure):
    """``struct Worker`` of native/kernels.h."""

    _fields_ = (
        ("index", ctypes.c_int),
        ("count", ctypes.c_int),
        ("scratch", ctypes.c_void_p),
        ("barrier", BARRIER),
        ("pool", ctypes.c_void_p),
        ("soon", ctypes.c_void_p),
    )


class Soon(ctypes.Structure):
    """``struct Soon`` of native/kernels.h."""

    _fields_ = (("at", ctypes.c_void_p), ("end", ctypes.c_void_p))


_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Kernels(ctypes.Structure):
    """``struct Kernels`` of native/kernels.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("quantize", ctypes.CFUNCTYPE(None, _INT, _POINTER, _LONG, _POINTER)),
        (
            "multiply",
            ctypes.CFUNCTYPE(
                None, _INT, _POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _POINTER, _LONG
            ),
        ),
        ("unpack", ctypes.CFUNCTYPE(None, _INT, _POINTER, _LONG, _LONG, _POINTER)),
        ("attention_scratch", ctypes.CFUNCTYPE(ctypes.c_size_t, _POINTER, _INT)),
        ("attend", ctypes.CFUNCTYPE(None, _POINTER, _POINTER)),
        ("likeliest", ctypes.CFUNCTYPE(_LONG, _POINTER, _LONG)),
        (
            "bound",
            ctypes.CFUNCTYPE(
                *(_FLOAT, _POINTER, _LONG, _FLOAT, _FLOAT),
                *(ctypes.c_uint32, ctypes.c_uint32, _LONG, _POINTER),
            ),
        ),
        ("best_of", ctypes.CFUNCTYPE(_FLOAT, _POINTER, _LONG, _LONG, _POINTER, _POINTER)),
    )


class Native:
    """The kernels of any instruction set on NumPy arrays."""

    def __init__(self, library: Any) -> None:
        self.library = library
        library.gorgon_kernels_find.restype = ctypes.POINTER(Kernels)

    def runs(self, isa: str) -> bool:
        """Whether this processor has the instruction set."""
        return bool(self.library.gorgon_kernels_find(isa.encode()))

    def of(self, isa: str) -> Kernels:
        """Its kernels."""
        found: Kernels = self.library.gorgon_kernels_find(isa.encode()).contents
        return found

    def pack(self, kind: int, blocks: Bytes, columns: int) -> Bytes:
        """ggml's blocks in our layout: 16 rows interleaved."""
        packed = np.zeros_like(blocks)
        self.library.gorgon_kernels_pack(
            kind,
            ctypes.c_int64(columns),
            ctypes.c_int64(len(blocks)),
            pointer(blocks),
            pointer(packed),
        )
        return packed

    def unpack(self, isa: str, kind: int, packed: Bytes, columns: int) -> Floats:
        """Our layout as floats."""
        out = np.empty((len(packed), columns), np.float32)
        for row in range(len(packed)):
            self.of(isa).unpack(kind, pointer(packed), columns, row, pointer(out[row]))
        return out

    def activations(self, isa: str, kind: int, x: Floats) -> Bytes:
        """Rows of ``struct Activation`` for weights of a type, [..., blocks of 32, 48 bytes]."""
        out = np.zeros((*x.shape[:-1], x.shape[-1] // 32, 48), np.uint8)
        self.of(isa).quantize(kind, pointer(x), x.size, pointer(out))
        return out

    def multiply(self, isa: str, kind: int, packed: Bytes, x: Floats) -> Floats:
        """``x @ W.T``."""
        of, rows, (n, columns) = self.of(isa), len(packed), x.shape
        quantized = self.activations(isa, kind, np.ascontiguousarray(x, np.float32))
        out = np.full((n, rows), np.nan, np.float32)
        of.multiply(
            kind, pointer(packed), columns, 0, rows // 16, pointer(quantized), n, pointer(out), rows
        )
        return out

    def best_of(self, isa: str, logits: Floats, k: int) -> tuple[Floats, NDArray[np.int32], float]:
        """The ``k`` largest, their places, and the sum of all exponentials."""
        values, places = np.empty(k, np.float32), np.empty(k, np.int32)
        total = self.of(isa).best_of(
            pointer(logits), len(logits), k, pointer(values), pointer(places)
        )
        return values, places, float(total)

    def likeliest(self, isa: str, logits: Floats) -> int:
        """The first of the largest."""
        return int(self.of(isa).likeliest(pointer(logits), len(logits)))

    def bound(self, isa: str, logits: Floats, noise: Noise, token: int) -> tuple[Floats, float]:
        """Bounds of ``(logits - largest) / temperature + noise`` in powers of 2, and the largest.

        ``token`` is that of the first logit.
        """
        out, scale = np.full(len(logits), np.nan, np.float32), 1 / noise.temperature / np.log(2)
        most, words = float(logits.max()), [int(word) for word in noise.key()]
        largest = self.of(isa).bound(
            pointer(logits), len(logits), most, scale, *words, token, pointer(out)
        )
        return out, float(largest)

    def attend(self, isa: str, args: AttentionArgs, out: Floats, threads: int = 1) -> Floats:
        """Attention by ``threads`` workers; a single one is this thread, which keeps its views."""
        out.fill(np.nan)
        args.out = out.ctypes.data
        of, barrier = self.of(isa), threading.Barrier(threads)
        scratch = np.full(of.attention_scratch(ctypes.byref(args), threads), 255, np.uint8)  # NaN

        def wait(_pool: int | None) -> None:
            barrier.wait()

        called = BARRIER(wait)

        def work(index: int) -> None:
            soon = Soon(scratch.ctypes.data, scratch.ctypes.data + scratch.nbytes)
            worker = Worker(
                index, threads, scratch.ctypes.data, called, None, ctypes.addressof(soon)
            )
            of.attend(ctypes.byref(args), ctypes.byref(worker))

        if threads == 1:
            work(0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))
        return out.copy()


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Where a contiguous array lies."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="session")
def native() -> Native:
    """Without offering the kernels to ggml, whose code valgrind cannot run."""
    try:
        kernels._check_version()
        return Native(kernels._library())
    except (kernels._StayOutError, OSError) as missing:
        pytest.skip(f"no native kernels: {missing}")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native: Native) -> str:
    name: str = request.param
    if not native.runs(name):
        pytest.skip(f"this processor does not run {name}")
    return name
