"""The library under test, and what its C interface looks like from Python."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gorgon.llama import kernels

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

ISAS = ("avx512", "avxvnni", "avx2")
F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K = 1, 2, 3, 6, 8, 12, 14
WEIGHT_TYPES = {"Q4_0": Q4_0, "Q4_1": Q4_1, "Q5_0": Q5_0, "Q8_0": Q8_0, "Q4_K": Q4_K, "Q6_K": Q6_K}
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q5_0: 22, Q8_0: 34, Q4_K: 144, Q6_K: 210}
BLOCK_COLUMNS = {Q4_0: 32, Q4_1: 32, Q5_0: 32, Q8_0: 32, Q4_K: 256, Q6_K: 256}


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
    )


class Native:
    """The test functions of the library on NumPy arrays."""

    def __init__(self, library: Any, base: Any) -> None:
        self.library = library
        self.base = base
        library.gorgon_test_runs.restype = ctypes.c_bool
        library.gorgon_test_likeliest.restype = ctypes.c_int64
        library.gorgon_test_weigh.restype = ctypes.c_float
        library.gorgon_test_best_of.restype = ctypes.c_float
        base.ggml_quantize_chunk.restype = ctypes.c_size_t
        base.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)

    def runs(self, isa: str) -> bool:
        """Whether this processor has the instruction set."""
        return bool(self.library.gorgon_test_runs(isa.encode()))

    def quantize(self, kind: int, weights: Floats) -> Bytes:
        """Weights in ggml's own blocks."""
        rows, columns = weights.shape
        weights = np.ascontiguousarray(weights, np.float32)
        out = np.empty((rows, columns // BLOCK_COLUMNS[kind] * BLOCK_BYTES[kind]), np.uint8)
        self.base.ggml_quantize_chunk(
            kind,
            pointer(weights),
            pointer(out),
            ctypes.c_int64(0),
            ctypes.c_int64(rows),
            ctypes.c_int64(columns),
            None,
        )
        return out

    def dequantize(self, kind: int, blocks: Bytes, columns: int) -> Floats:
        """What ggml makes of its own blocks."""
        out = np.empty((len(blocks), columns), np.float32)
        traits = self.base.ggml_get_type_traits(kind).contents
        traits.to_float(pointer(blocks), pointer(out), out.size)
        return out

    def pack(self, kind: int, blocks: Bytes, columns: int) -> Bytes:
        """ggml's blocks in our layout: 16 rows interleaved."""
        packed = np.zeros_like(blocks)
        self.library.gorgon_test_pack(
            kind,
            ctypes.c_int64(columns),
            ctypes.c_int64(len(blocks)),
            pointer(blocks),
            pointer(packed),
        )
        return packed

    def unpack(self, kind: int, packed: Bytes, columns: int) -> Floats:
        """Our layout as floats."""
        out = np.empty((len(packed), columns), np.float32)
        self.library.gorgon_test_unpack(
            kind,
            ctypes.c_int64(columns),
            ctypes.c_int64(len(packed)),
            pointer(packed),
            pointer(out),
        )
        return out

    def multiply(self, isa: str, kind: int, packed: Bytes, x: Floats) -> Floats:
        """``x @ W.T`` by the kernel of ``isa``, or the plain reference for ``""``."""
        x = np.ascontiguousarray(x, np.float32)
        out = np.full((len(x), len(packed)), np.nan, np.float32)
        self.library.gorgon_test_multiply(
            isa.encode(),
            kind,
            ctypes.c_int64(x.shape[1]),
            ctypes.c_int64(len(packed)),
            pointer(packed),
            pointer(x),
            ctypes.c_int64(len(x)),
            pointer(out),
        )
        return out

    def best_of(self, isa: str, logits: Floats, k: int) -> tuple[Floats, NDArray[np.int32], float]:
        """The ``k`` largest, their places, and the sum of all exponentials."""
        values, places = np.empty(k, np.float32), np.empty(k, np.int32)
        total = self.library.gorgon_test_best_of(
            isa.encode(),
            pointer(logits),
            ctypes.c_int64(logits.size),
            ctypes.c_int64(k),
            pointer(values),
            pointer(places),
        )
        return values, places, float(total)

    def likeliest(self, isa: str, logits: Floats) -> int:
        """The first of the largest."""
        count = ctypes.c_int64(len(logits))
        return int(self.library.gorgon_test_likeliest(isa.encode(), pointer(logits), count))

    def weigh(self, isa: str, logits: Floats, temperature: float) -> tuple[Floats, float]:
        """``exp(logits / temperature)`` over the largest of them, and the sum."""
        out = np.full(len(logits) + 15, np.nan, np.float32)
        most = np.float32(logits.max()) / np.float32(temperature)
        total = self.library.gorgon_test_weigh(
            isa.encode(),
            pointer(logits),
            ctypes.c_int64(len(logits)),
            ctypes.c_float(temperature),
            ctypes.c_float(float(most)),
            pointer(out),
        )
        return out[: len(logits)], float(total)

    def attend(self, isa: str, args: AttentionArgs, out: Floats, threads: int = 1) -> Floats:
        """Attention by the kernel of ``isa``, or the double-precision reference for ``""``."""
        out.fill(np.nan)
        args.out = out.ctypes.data
        self.library.gorgon_test_attend(isa.encode(), ctypes.byref(args), threads)
        return out.copy()


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Where a contiguous array lies."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="session")
def native() -> Native:
    status = kernels.load()
    if not status.active:
        pytest.skip(f"no native kernels: {status.reason}")
    return Native(kernels._library(), ctypes.CDLL("libggml-base.so.0"))


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native: Native) -> str:
    name: str = request.param
    if not native.runs(name):
        pytest.skip(f"this processor does not run {name}")
    return name
