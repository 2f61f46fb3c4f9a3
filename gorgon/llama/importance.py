"""Importance matrices: which columns of a weight see large activations.

Computed here as ``llama-imatrix`` does it: llama.cpp's evaluation callback shows every matrix
product of a forward pass, and the squares of its input are averaged over the tokens of a text, one
number per column of the weight. Also reads the two files that ``llama-imatrix`` writes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.backend import BatchRow
from gorgon.config import EngineSettings
from gorgon.errors import CompileError
from gorgon.llama import ggml
from gorgon.llama.context import Context
from gorgon.llama.gguf import MAGIC, GgufFile
from gorgon.llama.library import llama
from gorgon.llama.model import Model

WINDOW = 512  # tokens that see each other, llama-imatrix's default
MIN_TOKENS = 64
_MIN_ROWS = 16  # as llama-imatrix: smaller products are not part of a text's forward pass
Values = dict[str, npt.NDArray[np.float32]]


class _Tensor(ctypes.Structure):
    """The head of ``struct ggml_tensor``, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class _ObservedContext(Context):
    """A context that shows the input of every matrix product to a collector."""

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self._callback = llama.ggml_backend_sched_eval_callback(self._on_node)
        super().__init__(model, settings)

    def _params(self, settings: EngineSettings) -> Any:
        params = super()._params(settings)
        params.cb_eval = self._callback
        return params

    def _on_node(self, address: int, ask: bool, _data: int | None) -> bool:
        """Say whether the product at ``address`` counts (``ask``), or take its input."""
        node = _Tensor.from_address(address)
        if ggml.op_name(node.op) != b"MUL_MAT":
            return not ask
        weight, rows = (_Tensor.from_address(node.src[i] or 0) for i in (0, 1))
        name = weight.name.decode("utf-8", "replace")
        if ask:
            in_layer, is_text = name.startswith("blk."), rows.ne[1] >= _MIN_ROWS
            return bool(in_layer and is_text and rows.type == ggml.TYPE_F32)
        self._add(name, node.src[1] or 0, rows)
        return True

    def _add(self, name: str, address: int, rows: _Tensor) -> None:
        values = np.empty((rows.ne[1], rows.ne[0]), np.float32)
        ggml.backend_tensor_get(address, values.ctypes.data, 0, values.nbytes)
        squares = np.square(values, out=values).sum(axis=0, dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + len(values)


def measure(model: Path, text: str, threads: int, on_progress: Callable[[float], None]) -> Values:
    """The mean squared input of each weight's columns over ``text``.

    Args:
        model: an unquantised GGUF.
        text: at least ``MIN_TOKENS`` tokens; some 50,000 are usual.
        threads: threads to compute with.
        on_progress: called with the fraction of the text done.

    Raises:
        CompileError: when the text is too short.
        ModelError: when the model cannot be loaded.
    """
    settings = EngineSettings(
        model=model, threads=threads, num_cells=WINDOW, prefill_batch=WINDOW, gpu_layers=0
    )
    loaded = Model(settings, model)
    try:
        ids = loaded.tokenize(text, add_special=False, parse_special=False)
        if len(ids) < MIN_TOKENS:
            raise CompileError(
                f"--imatrix: the text has {len(ids)} tokens, at least {MIN_TOKENS} are needed"
            )
        return _observe(loaded, settings, ids, on_progress)
    finally:
        loaded.close()


def read(path: Path) -> Values:
    """An importance matrix from a file of ``llama-imatrix``, GGUF or the older format.

    Raises:
        CompileError: when it is neither.
    """
    with path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    values = _read_gguf(path) if is_gguf else _read_legacy(path)
    if not values:
        raise CompileError(f"{path}: not an importance matrix; give a text or llama-imatrix's file")
    return values


def _observe(
    model: Model, settings: EngineSettings, ids: Sequence[int], on_progress: Callable[[float], None]
) -> Values:
    context = _ObservedContext(model, settings)
    bos = [] if model.bos is None else [model.bos]
    step = WINDOW - len(bos)
    try:
        for start in range(0, len(ids), step):
            window = bos + list(ids[start : start + step])
            if len(window) >= _MIN_ROWS:
                context.clear()
                # With outputs: without them the last layer would compute no rows at all.
                context.decode([BatchRow(token, i, (0,)) for i, token in enumerate(window)])
            on_progress(min(1.0, (start + step) / len(ids)))
    finally:
        context.close()
    return {
        name: (total / context.counts[name]).astype(np.float32)
        for name, total in context.sums.items()
    }


def _read_gguf(path: Path) -> Values:
    with GgufFile(path) as file:
        if file.string("general.type") != "imatrix":
            return {}
        values: Values = {}
        for name in file.tensors:
            if name.endswith(".in_sum2"):
                weight = name.removesuffix(".in_sum2")
                sums = file.read(name).view(np.float32)
                counts = file.read(f"{weight}.counts").view(np.float32)
                shaped = sums.reshape(len(counts), -1) / np.maximum(counts, 1.0)[:, None]
                values[weight] = shaped.reshape(-1).astype(np.float32)
        return values


def _read_legacy(path: Path) -> Values:
    """``int32 n``, then n times: name length, name, calls, number of values, values."""
    data, values = path.read_bytes(), Values()
    try:
        (count,), at = struct.unpack_from("<i", data), 4
        for _ in range(count):
            (length,) = struct.unpack_from("<i", data, at)
            name = data[at + 4 : at + 4 + length].decode()
            calls, size = struct.unpack_from("<ii", data, at + 4 + length)
            at += 12 + length
            values[name] = np.frombuffer(data, "<f4", size, at) / max(calls, 1)
            at += 4 * size
    except (struct.error, ValueError):
        return {}
    return values
