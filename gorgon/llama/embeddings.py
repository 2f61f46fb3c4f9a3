"""Rows of a model's token embedding as floats, straight from its memory-mapped file."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Ints
from gorgon.errors import HeadsError
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile
from gorgon.llama.model import ModelInfo

_NAME = "token_embd.weight"
_FEW = 8  # tokens at a time
_MANY = 1024  # while a table is made


class Embeddings:
    """``token_embd.weight`` of ``base``; only the rows asked for are read and dequantised.

    Raises:
        HeadsError: when its type cannot be turned into floats.
    """

    def __init__(self, base: ModelInfo) -> None:
        with GgufFile(base.path) as file:
            tensor = file.tensors[_NAME]
            self._rows: npt.NDArray[np.uint8] = np.asarray(file.read(_NAME))
        self._rows = self._rows.reshape(base.num_vocab, -1)
        self._num_embd = base.num_embd
        self.address, self.row_bytes = self._rows.ctypes.data, self._rows.shape[1]
        self._make_room(_FEW)
        self._to_float = None
        if tensor.type != ggml.TYPE_F32:
            self._to_float = ggml.get_type_traits(tensor.type)[0].to_float
            if not self._to_float:
                raise HeadsError(f"{base.path}: {_NAME} is {tensor.type_name}, no floats")

    @property
    def to_float(self) -> int | None:
        """Address of the function that makes floats of a row; None where it is floats."""
        return ctypes.cast(self._to_float, ctypes.c_void_p).value if self._to_float else None

    def read(self, tokens: Ints) -> Floats:
        """The embeddings of ``tokens``, shape [*tokens.shape, num_embd]; valid until the next call.

        They are made in memory that stays, which is still in the processor's cache.
        """
        shape, count = (*tokens.shape, self._num_embd), tokens.size
        if count > len(self._raw):
            self._make_room(count)
        raw = self._rows.take(tokens.ravel(), 0, self._raw[:count], "clip")
        if self._to_float is None:
            return raw.view(np.float32).reshape(shape)
        self._to_float(self._raw_address, self._floats_address, count * self._num_embd)
        return self._floats[:count].reshape(shape)

    def normalised(self, tokens: Ints, epsilon: float) -> npt.NDArray[np.float16]:
        """``rms_norm`` of the embeddings of ``tokens`` [n], shape [n, num_embd]."""
        table = np.empty((len(tokens), self._num_embd), np.float16)
        for first in range(0, len(tokens), _MANY):
            rows = self.read(tokens[first : first + _MANY])
            scale = np.sqrt(np.mean(rows * rows, axis=1, keepdims=True) + epsilon)
            table[first : first + _MANY] = rows / scale
        self._make_room(_FEW)
        return table

    def _make_room(self, count: int) -> None:
        """For ``count`` tokens at a time."""
        self._raw = np.empty((count, self._rows.shape[1]), np.uint8)
        self._floats = np.empty((count, self._num_embd), np.float32)
        self._raw_address, self._floats_address = self._raw.ctypes.data, self._floats.ctypes.data
