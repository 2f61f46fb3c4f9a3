"""Rows of a model's token embedding as floats, straight from its memory-mapped file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Ints
from gorgon.errors import HeadsError
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile
from gorgon.llama.model import ModelInfo

_NAME = "token_embd.weight"


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
        self._to_float = None
        if tensor.type != ggml.TYPE_F32:
            self._to_float = ggml.get_type_traits(tensor.type)[0].to_float
            if not self._to_float:
                raise HeadsError(f"{base.path}: {_NAME} is {tensor.type_name}, no floats")

    def read(self, tokens: Ints) -> Floats:
        """The embeddings of ``tokens``, shape [*tokens.shape, num_embd]."""
        shape = (*tokens.shape, self._num_embd)
        raw = self._rows[tokens.ravel()]
        if self._to_float is None:
            return raw.view(np.float32).reshape(shape)
        floats = np.empty(shape, np.float32)
        self._to_float(raw.ctypes.data, floats.ctypes.data, floats.size)
        return floats
