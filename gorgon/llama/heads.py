"""Medusa heads as one ggml graph on the model's device.

Head i reads h, the hidden state after the final norm at position t, and guesses token t + 2 + i
(Medusa, section 2.1):

    z = h + SiLU(W h + b)     for each residual block
    guess = top_k(softmax(M z))

M is the heads' own output matrix or, when ``shared``, the base model's, in both cases cut to the
rows in ``token_map`` if there is one. Softmax and top-k run inside the graph, so a step brings
back k numbers per head instead of a vocabulary.
"""

from __future__ import annotations

import ctypes
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Guesses, Ints
from gorgon.config import EngineSettings
from gorgon.errors import HeadsError, ModelError
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile, TensorInfo
from gorgon.llama.model import ModelInfo

logger = logging.getLogger("gorgon.llama")

FORMAT_VERSION = 1
MAX_HEADS = 16


@dataclass(frozen=True, slots=True)
class HeadsInfo:
    """The keys of a heads file."""

    path: Path
    variant: str
    num_heads: int
    num_blocks: int
    output: str
    num_outputs: int


class Heads:
    """Heads loaded for one base model; free with ``close``.

    Args:
        path: the heads file.
        base: the model that the heads were made for.
        settings: device and threads.
        top_k: guesses per head.

    Raises:
        HeadsError: when the file is damaged or made for another model.
    """

    def __init__(
        self, path: Path, base: ModelInfo, settings: EngineSettings, top_k: int = 10
    ) -> None:
        with _open(path) as file:
            self.info = _check(file, base)
            self.top_k = min(top_k, self.info.num_outputs)
            self._num_embd = base.num_embd
            self._token_map = _read_token_map(file, base.num_vocab)
            self._graphs: dict[int, _Graph] = {}
            self._backend: int | None = _make_backend(settings)
            self._weights = _Weights(file, base, self._token_map, self._backend, self.info)

    @property
    def num_heads(self) -> int:
        """How many tokens ahead the heads look."""
        return self.info.num_heads

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return self._weights.size

    def propose(self, hidden: Floats) -> Guesses:
        """All heads on rows of hidden states.

        Args:
            hidden: shape [rows, num_embd].

        Raises:
            HeadsError: when the device fails.
        """
        rows = len(hidden)
        graph = self._graph(rows)
        padded = hidden
        if graph.rows > rows:
            padded = np.zeros((graph.rows, self._num_embd), np.float32)
            padded[:rows] = hidden
        ids, probs = graph.run(np.ascontiguousarray(padded, np.float32))
        shape = (self.num_heads, graph.rows, self.top_k)
        ids, probs = ids.reshape(shape)[:, :rows], probs.reshape(shape)[:, :rows]
        order = np.argsort(-probs, axis=-1, kind="stable")
        ids = np.take_along_axis(ids, order, -1).transpose(1, 0, 2)
        probs = np.take_along_axis(probs, order, -1).transpose(1, 0, 2)
        return Guesses(ids if self._token_map is None else self._token_map[ids], probs)

    def close(self) -> None:
        """Free weights and graphs."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._weights.close()
        if self._backend:
            ggml.backend_free(self._backend)
            self._backend = None

    def _graph(self, rows: int) -> _Graph:
        size = rows if rows <= 4 else math.ceil(rows / 4) * 4
        if size not in self._graphs:
            assert self._backend is not None
            self._graphs[size] = _Graph(self._weights, self.info, self._backend, size, self.top_k)
        return self._graphs[size]


class _Weights:
    """The heads' tensors on the device, by name."""

    def __init__(
        self,
        file: GgufFile,
        base: ModelInfo,
        token_map: Ints | None,
        backend: int,
        info: HeadsInfo,
    ) -> None:
        tensors = [t for t in file.tensors.values() if t.name != "token_map"]
        self.num_embd = base.num_embd
        self._context = _make_ggml_context(len(tensors) + 1)
        self.by_name = {t.name: _declare(self._context, t) for t in tensors}
        shared = _SharedOutput(base, token_map) if info.output == "shared" else None
        if shared:
            self.by_name["output.weight"] = ggml.new_tensor_2d(
                self._context, shared.type, base.num_embd, info.num_outputs
            )
        self._buffer = ggml.backend_alloc_ctx_tensors(self._context, backend)
        if not self._buffer:
            raise HeadsError(f"{file.path}: no memory for the heads on this device")
        for tensor in tensors:
            _upload(self.by_name[tensor.name], file.read(tensor.name))
        if shared:
            _upload(self.by_name["output.weight"], shared.read())

    @property
    def size(self) -> int:
        return int(ggml.backend_buffer_get_size(self._buffer))

    def output(self, head: int) -> int:
        """The output matrix of ``head``: its own or the one of all heads."""
        own = self.by_name.get(f"head.{head}.output.weight")
        return self.by_name["output.weight"] if own is None else own

    def close(self) -> None:
        if self._buffer:
            ggml.backend_buffer_free(self._buffer)
            ggml.free(self._context)
            self._buffer = None


class _SharedOutput:
    """Rows of the base model's output matrix, straight from its file."""

    def __init__(self, base: ModelInfo, token_map: Ints | None) -> None:
        self._base, self._token_map = base, token_map
        with GgufFile(base.path) as file:
            self.type = file.tensors[base.output_tensor].type

    def read(self) -> npt.NDArray[np.uint8]:
        with GgufFile(self._base.path) as file:
            if self._token_map is None:
                return file.read(self._base.output_tensor)
            return file.read_rows(self._base.output_tensor, self._token_map)


class _Graph:
    """The computation for a fixed number of rows."""

    def __init__(
        self, weights: _Weights, info: HeadsInfo, backend: int, rows: int, top_k: int
    ) -> None:
        self.rows, self._backend = rows, backend
        count = info.num_heads * rows * top_k
        self._ids, self._probs = np.empty(count, np.int32), np.empty(count, np.float32)
        num_nodes = 16 * info.num_heads * (info.num_blocks + 2)
        self._context = _make_ggml_context(num_nodes, graph_nodes=num_nodes)
        self._hidden = ggml.new_tensor_2d(self._context, ggml.TYPE_F32, weights.num_embd, rows)
        ggml.set_input(self._hidden)
        self._out_ids, self._out_probs = _build(self._context, weights, info, self._hidden, top_k)
        self._graph = ggml.new_graph_custom(self._context, num_nodes, False)
        for tensor in (self._out_ids, self._out_probs):
            ggml.set_output(tensor)
            ggml.build_forward_expand(self._graph, tensor)
        self._allocator = ggml.gallocr_new(ggml.backend_get_default_buffer_type(backend))
        if not ggml.gallocr_alloc_graph(self._allocator, self._graph):
            raise HeadsError(f"{info.path}: no memory to run the heads on {rows} rows")

    def run(self, hidden: Floats) -> tuple[Ints, Floats]:
        ggml.backend_tensor_set(self._hidden, hidden.ctypes.data, 0, hidden.nbytes)
        if ggml.backend_graph_compute(self._backend, self._graph) != ggml.STATUS_SUCCESS:
            raise HeadsError("the heads failed on the device")
        for source, target in ((self._out_ids, self._ids), (self._out_probs, self._probs)):
            ggml.backend_tensor_get(source, target.ctypes.data, 0, target.nbytes)
        return self._ids, self._probs

    def close(self) -> None:
        ggml.gallocr_free(self._allocator)
        ggml.free(self._context)


def _build(
    context: int, weights: _Weights, info: HeadsInfo, hidden: int, top_k: int
) -> tuple[int, int]:
    """Add the heads to ``context``; ids and probabilities, [top_k, heads * rows], unordered."""
    states = [_residual(context, weights, info, head, hidden) for head in range(info.num_heads)]
    if "output.weight" in weights.by_name:
        # One product for all heads: the matrix is read once.
        logits = ggml.mul_mat(context, weights.output(0), _concat(context, states))
    else:
        products = [
            ggml.mul_mat(context, weights.output(i), state) for i, state in enumerate(states)
        ]
        logits = _concat(context, products)
    probs = ggml.soft_max(context, logits)
    ids = ggml.top_k(context, probs, top_k)
    return ids, _gather(context, probs, ids, info.num_outputs)


def _residual(context: int, weights: _Weights, info: HeadsInfo, head: int, state: int) -> int:
    for block in range(info.num_blocks):
        name = f"head.{head}.block.{block}"
        product = ggml.mul_mat(context, weights.by_name[f"{name}.weight"], state)
        if f"{name}.bias" in weights.by_name:
            product = ggml.add(context, product, weights.by_name[f"{name}.bias"])
        state = ggml.add(context, state, ggml.silu(context, product))
    return state


def _concat(context: int, tensors: list[int]) -> int:
    joined = tensors[0]
    for tensor in tensors[1:]:
        joined = ggml.concat(context, joined, tensor, 1)
    return joined


def _gather(context: int, probs: int, ids: int, num_outputs: int) -> int:
    """The entries of ``probs`` [outputs, n] named by ``ids`` [top_k, n]: [1, top_k, n]."""
    count = _num_columns(probs)
    return int(ggml.get_rows(context, ggml.reshape_3d(context, probs, 1, num_outputs, count), ids))


def _num_columns(tensor: int) -> int:
    # ne[1] of struct ggml_tensor: type (4, padded to 8), buffer (8), then ne[0], ne[1].
    return ctypes.c_int64.from_address(tensor + 24).value


def _make_ggml_context(num_tensors: int, graph_nodes: int = 0) -> int:
    size = ggml.tensor_overhead() * (num_tensors + 1)
    if graph_nodes:
        size += ggml.graph_overhead_custom(graph_nodes, False)
    return int(ggml.init(ggml.InitParams(size, None, True)))


def _make_backend(settings: EngineSettings) -> int:
    if settings.gpu_layers != 0 and ggml.backend_dev_by_type(ggml.DEVICE_GPU):
        return int(ggml.backend_init_by_type(ggml.DEVICE_GPU, None))
    backend = int(ggml.backend_init_by_type(ggml.DEVICE_CPU, None))
    ggml.backend_cpu_set_n_threads(backend, settings.threads)
    return backend


def _declare(context: int, tensor: TensorInfo) -> int:
    if len(tensor.shape) == 1:
        return int(ggml.new_tensor_1d(context, tensor.type, tensor.shape[0]))
    return int(ggml.new_tensor_2d(context, tensor.type, *tensor.shape))


def _upload(tensor: int, data: npt.NDArray[np.uint8]) -> None:
    data = np.ascontiguousarray(data)
    assert data.nbytes == ggml.nbytes(tensor)
    ggml.backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)


def _open(path: Path) -> GgufFile:
    try:
        return GgufFile(path)
    except ModelError as error:
        raise HeadsError(str(error)) from error


def _read_token_map(file: GgufFile, num_vocab: int) -> Ints | None:
    if "token_map" not in file.tensors:
        return None
    ids = file.read("token_map").view(np.int32).copy()
    if ids.min() < 0 or ids.max() >= num_vocab:
        raise HeadsError(f"{file.path}: token_map names tokens outside 0..{num_vocab - 1}")
    return ids


def _check(file: GgufFile, base: ModelInfo) -> HeadsInfo:
    """The keys of the file, checked against the base model and the tensors."""
    path = file.path
    if file.string("general.architecture") != "medusa":
        raise HeadsError(f"{path}: no Medusa heads (general.architecture); see gorgon compile")
    version = file.uint("medusa.format_version")
    if version != FORMAT_VERSION:
        raise HeadsError(f"{path}: heads format {version}, this Gorgon reads {FORMAT_VERSION}")
    _check_base(file, base)
    info = _read_info(file, base)
    for name, shape in _expected_shapes(info, base.num_embd).items():
        found = file.tensors.get(name)
        if found is None or found.shape != shape:
            raise HeadsError(f"{path}: tensor {name} is {found and found.shape}, expected {shape}")
    return info


def _check_base(file: GgufFile, base: ModelInfo) -> None:
    for key, expected in (
        ("medusa.embedding_length", base.num_embd),
        ("medusa.vocab_size", base.num_vocab),
    ):
        if file.uint(key) != expected:
            raise HeadsError(
                f"{file.path}: made for another model ({key} {file.uint(key)}, "
                f"{base.path.name} has {expected})"
            )
    if file.string("medusa.base.fingerprint") != base.fingerprint:
        raise HeadsError(
            f"{file.path}: made for another model of the same size than {base.path.name} "
            "(medusa.base.fingerprint); train heads for this one"
        )


def _read_info(file: GgufFile, base: ModelInfo) -> HeadsInfo:
    path, token_map = file.path, file.tensors.get("token_map")
    num_heads = file.uint("medusa.head_count") or 0
    variant, output = file.string("medusa.variant"), file.string("medusa.output")
    if not 1 <= num_heads <= MAX_HEADS:
        raise HeadsError(f"{path}: medusa.head_count {num_heads}, must be 1 to {MAX_HEADS}")
    if variant != "medusa":
        raise HeadsError(f"{path}: medusa.variant '{variant}' is not known to this Gorgon")
    if output not in ("own", "shared"):
        raise HeadsError(f"{path}: medusa.output '{output}', must be 'own' or 'shared'")
    return HeadsInfo(
        path=path,
        variant=variant,
        num_heads=num_heads,
        num_blocks=file.uint("medusa.block_count") or 0,
        output=output,
        num_outputs=token_map.shape[0] if token_map else base.num_vocab,
    )


def _expected_shapes(info: HeadsInfo, num_embd: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(info.num_heads):
        for block in range(info.num_blocks):
            shapes[f"head.{head}.block.{block}.weight"] = (num_embd, num_embd)
            shapes[f"head.{head}.block.{block}.bias"] = (num_embd,)
        if info.output == "own":
            shapes[f"head.{head}.output.weight"] = (num_embd, info.num_outputs)
    return shapes
