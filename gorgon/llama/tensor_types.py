"""ggml's tensor types by name, and floats turned into them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gorgon.errors import HeadsError
from gorgon.llama import ggml

# Numbers of enum ggml_type.
TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 30,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
}

# What llama.cpp takes for rows that do not fill the type's blocks; F16 if that does not fit either.
_FALLBACK = {TYPES["Q4_K"]: "Q5_0", TYPES["Q5_K"]: "Q5_1", TYPES["Q6_K"]: "Q8_0"}

_CHUNK_BYTES = 16 << 20  # of floats, turned at a time


def type_named(name: str) -> int:
    """The number of a ggml type that heads can be stored in.

    Raises:
        HeadsError: for an unknown name.
    """
    if name.upper() not in TYPES:
        raise HeadsError(f"type '{name}' is not known; take one of {', '.join(TYPES)}")
    return TYPES[name.upper()]


def fitting(kind: int, columns: int) -> int:
    """``kind``, or the type that llama.cpp falls back to where ``columns`` do not fill blocks."""
    for candidate in (kind, TYPES[_FALLBACK.get(kind, "F16")], TYPES["F16"]):
        if columns % ggml.block_size(candidate) == 0:
            return candidate
    raise AssertionError("F16 fits everything")


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of one row."""
    return int(ggml.row_size(kind, columns))


class Rows(Protocol):
    """Numbers whose first dimension can be read piece by piece, as an array or from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The contiguous dimension last."""

    def __getitem__(self, rows: slice, /) -> npt.ArrayLike:
        """Some of the rows."""


def encode(values: Rows, kind: int) -> npt.NDArray[np.uint8]:
    """The bytes of ``values`` [rows, columns] in ``kind``, which must fit (see ``fitting``).

    Memory beyond the result is bounded: all cores work on a few rows at a time.
    """
    num_rows, columns = values.shape
    assert columns % ggml.block_size(kind) == 0
    stride = row_bytes(kind, columns)
    raw = np.empty(num_rows * stride, np.uint8)
    at_once = max(1, _CHUNK_BYTES // (4 * columns))

    def encode_from(first: int) -> None:
        piece = np.ascontiguousarray(values[first : first + at_once], np.float32)
        target = raw.ctypes.data + first * stride
        written = ggml.quantize_chunk(kind, piece.ctypes.data, target, 0, *piece.shape, None)
        assert written == len(piece) * stride

    with ThreadPoolExecutor() as pool:
        list(pool.map(encode_from, range(0, num_rows, at_once)))
    return raw
