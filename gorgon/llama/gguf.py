"""Reading GGUF files through ggml's own reader: typed keys, tensor table, bytes by memory map.

Knows the container only, not what a model or heads mean by their keys.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.errors import ModelError
from gorgon.llama import ggml

_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9
MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the table: ggml type, shape with the contiguous dimension first, bytes."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def type_name(self) -> str:
        """Name of the ggml type, ``q4_K`` for example."""
        return bytes(ggml.type_name(self.type)).decode()


class GgufFile:
    """An open GGUF file; use as a context manager.

    Raises:
        ModelError: on opening, when the file is missing, not GGUF, damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_header(path)
        params = ggml.GgufInitParams(no_alloc=True, ctx=None)
        self._handle = ggml.gguf_init_from_file(os.fsencode(path), params)
        if not self._handle:
            raise ModelError(f"{path}: damaged GGUF header; download or convert the file again")
        self.tensors = {tensor.name: tensor for tensor in self._read_tensors()}
        self._check_size()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the header; arrays handed out before stay valid."""
        if self._handle:
            ggml.gguf_free(self._handle)
            self._handle = None

    def string(self, key: str) -> str | None:
        """The string at ``key``; None where there is none."""
        index = self._find(key, _STRING)
        if index is None:
            return None
        return bytes(ggml.gguf_get_val_str(self._handle, index)).decode("utf-8", "replace")

    def uint(self, key: str) -> int | None:
        """The 32-bit unsigned integer at ``key``; None where there is none."""
        index = self._find(key, _UINT32)
        return None if index is None else int(ggml.gguf_get_val_u32(self._handle, index))

    def float32(self, key: str) -> float | None:
        """The 32-bit float at ``key``; None where there is none."""
        index = self._find(key, _FLOAT32)
        return None if index is None else float(ggml.gguf_get_val_f32(self._handle, index))

    def floats(self, key: str) -> npt.NDArray[np.float32] | None:
        """A copy of the float array at ``key``; None where there is none."""
        index = self._find(key, _ARRAY)
        if index is None or ggml.gguf_get_arr_type(self._handle, index) != _FLOAT32:
            return None
        count = ggml.gguf_get_arr_n(self._handle, index)
        address = ggml.gguf_get_arr_data(self._handle, index)
        return np.array((ctypes.c_float * count).from_address(address), np.float32)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """The raw bytes of tensor ``name`` as a read-only memory map, shape [size]."""
        tensor = self.tensors[name]
        return np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.size,))

    def read_rows(self, name: str, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """The raw bytes of some rows of a matrix, shape [len(rows), bytes per row]."""
        tensor = self.tensors[name]
        return self.read(name).reshape(tensor.shape[1], -1)[rows]

    def _find(self, key: str, kind: int) -> int | None:
        index = int(ggml.gguf_find_key(self._handle, key.encode()))
        if index < 0 or ggml.gguf_get_kv_type(self._handle, index) != kind:
            return None
        return index

    def _read_tensors(self) -> Iterator[TensorInfo]:
        start = ggml.gguf_get_data_offset(self._handle)
        for i in range(ggml.gguf_get_n_tensors(self._handle)):
            shape = list(ggml.gguf_get_tensor_ne(self._handle, i)[:4])
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            yield TensorInfo(
                name=ggml.gguf_get_tensor_name(self._handle, i).decode("utf-8", "replace"),
                type=ggml.gguf_get_tensor_type(self._handle, i),
                shape=tuple(shape),
                offset=start + ggml.gguf_get_tensor_offset(self._handle, i),
                size=ggml.gguf_get_tensor_size(self._handle, i),
            )

    def _check_size(self) -> None:
        needed = max((t.offset + t.size for t in self.tensors.values()), default=0)
        actual = self.path.stat().st_size
        if actual < needed:
            self.close()
            raise ModelError(
                f"{self.path}: truncated, {actual:,} of {needed:,} bytes; download it again"
            )


def num_elements(tensor: TensorInfo) -> int:
    """How many numbers the tensor holds."""
    return math.prod(tensor.shape)


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; give the path of a GGUF file") from error
    if magic != MAGIC:
        raise ModelError(f"{path}: not a GGUF file (starts with {magic!r}); convert the model")
