"""Tensors that stay in their file until their rows are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# As safetensors names them; BF16 has no NumPy type and is read through 16-bit integers.
DTYPES: dict[str, npt.DTypeLike] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
}


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return np.dtype(DTYPES[dtype]).itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A contiguous tensor at ``offset`` of ``path``, the contiguous dimension last."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[np.generic]:
        """Some rows: floats as F32, integers as they are."""
        if math.prod(self.shape) == 0:
            return np.empty((0, *self.shape[1:]), np.float32)
        values = np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)
        chosen = np.asarray(values[rows])
        if self.dtype == "BF16":
            return (chosen.astype(np.uint32) << 16).view(np.float32)
        return chosen if self.dtype.startswith("I") else chosen.astype(np.float32)


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The rows ``ids`` of a matrix, in that order."""

    matrix: StoredTensor
    ids: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, ...]:
        """The contiguous dimension last."""
        return (len(self.ids), *self.matrix.shape[1:])

    def __getitem__(self, rows: slice) -> npt.NDArray[np.generic]:
        """Some of the chosen rows."""
        return self.matrix[self.ids[rows]]
