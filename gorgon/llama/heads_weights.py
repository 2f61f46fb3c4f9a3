"""The tensors of a heads file on the model's device.

Matrices that multiply the same input are stacked: those of one type lie below each other as one
tensor, so that a step needs one product for all of them. On the CPU they go, where they fit, to
the small-batch kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gorgon.backend import Ints
from gorgon.config import EngineSettings
from gorgon.errors import HeadsError
from gorgon.llama import ggml, kernels
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.model import ModelInfo
from gorgon.llama.tensors import join, make_context


class Device:
    """Where the heads are computed: the GPU if the model is there, else the CPU."""

    def __init__(self, settings: EngineSettings) -> None:
        self.is_gpu = settings.gpu_layers != 0 and bool(ggml.backend_dev_by_type(ggml.DEVICE_GPU))
        kind = ggml.DEVICE_GPU if self.is_gpu else ggml.DEVICE_CPU
        self.handle = int(ggml.backend_init_by_type(kind, None))
        if not self.is_gpu:
            ggml.backend_cpu_set_n_threads(self.handle, settings.threads)
        self.buffer_type = int(ggml.backend_get_default_buffer_type(self.handle))
        # Of host memory that the device copies to and from by itself; none where it needs no copy.
        self.staging_type: int | None = None
        if self.is_gpu:
            device = ggml.backend_get_device(self.handle)
            self.staging_type = ggml.backend_dev_host_buffer_type(device)

    def close(self) -> None:
        """Free the device; what lies on it must be freed before."""
        if self.handle:
            ggml.backend_free(self.handle)
            self.handle = 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """Bytes of a matrix, or of several of one type and width below each other.

    ``shape`` has the contiguous dimension first; a vector is a matrix of one row.
    """

    type: int
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]


class Weights:
    """The weights that a graph multiplies with, by the name of the first tensor of each stack.

    Args:
        stacks: each a list of matrices with one input.
        device: where they go.

    Raises:
        HeadsError: when the device has no room.
    """

    def __init__(self, stacks: dict[str, list[Matrix]], device: Device) -> None:
        self._buffers: list[_Buffer] = []
        matrices = [matrix for stack in stacks.values() for matrix in stack]
        packed = [not device.is_gpu and kernels.packs(m.type, m.shape) for m in matrices]
        tensors = [0] * len(matrices)
        for is_packed, buffer_type in ((True, kernels.buffer_type()), (False, device.buffer_type)):
            places = [i for i, packs in enumerate(packed) if packs == is_packed]
            if places and buffer_type is not None:
                placed = self._place([matrices[i] for i in places], buffer_type)
                for i, tensor in zip(places, placed, strict=True):
                    tensors[i] = tensor
        rest = iter(tensors)
        self._stacks = {name: [next(rest) for _ in stack] for name, stack in stacks.items()}

    def _place(self, matrices: list[Matrix], buffer_type: int) -> list[int]:
        try:
            buffer = _Buffer(matrices, buffer_type)
        except HeadsError:
            self.close()
            raise
        self._buffers.append(buffer)
        return buffer.tensors

    @property
    def size(self) -> int:
        """Bytes on the device."""
        return sum(buffer.size for buffer in self._buffers)

    def __contains__(self, name: str) -> bool:
        return name in self._stacks

    def tensor(self, name: str) -> int:
        """The one tensor that the stack ``name`` consists of."""
        (tensor,) = self._stacks[name]
        return tensor

    def multiply(self, context: int, name: str, x: int) -> int:
        """The matrices of stack ``name`` times ``x`` [columns, n]: [all their rows, n]."""
        products = [ggml.mul_mat(context, tensor, x) for tensor in self._stacks[name]]
        return join(context, products, 0)

    def close(self) -> None:
        """Free the tensors."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []


class _Buffer:
    """Tensors in one piece of memory of the device."""

    def __init__(self, matrices: list[Matrix], buffer_type: int) -> None:
        self._context = make_context(len(matrices))
        self.tensors = [
            int(ggml.new_tensor_2d(self._context, matrix.type, *matrix.shape))
            for matrix in matrices
        ]
        self._handle = ggml.backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)
        if not self._handle:
            ggml.free(self._context)
            raise HeadsError("the device has no memory for the heads; put fewer layers on it")
        for tensor, matrix in zip(self.tensors, matrices, strict=True):
            assert matrix.data.nbytes == ggml.nbytes(tensor)
            ggml.backend_tensor_set(tensor, matrix.data.ctypes.data, 0, matrix.data.nbytes)

    @property
    def size(self) -> int:
        return int(ggml.backend_buffer_get_size(self._handle))

    def close(self) -> None:
        ggml.backend_buffer_free(self._handle)
        ggml.free(self._context)


def read_stacks(
    file: GgufFile,
    info: HeadsInfo,
    base: ModelInfo,
    token_map: Ints | None,
    names: Sequence[Sequence[str]],
) -> dict[str, list[Matrix]]:
    """The bytes of every stack in ``names`` from the heads file.

    ``output.weight`` comes from the model's own file when the heads share it, cut to the rows in
    ``token_map``.
    """
    stacks = {}
    for stack in names:
        matrices = [
            _shared_output(base, token_map)
            if name == "output.weight" and info.output == "shared"
            else _read(file, name)
            for name in stack
        ]
        stacks[stack[0]] = [
            _stack(list(group)) for _, group in itertools.groupby(matrices, lambda m: m.type)
        ]
    return stacks


def _read(file: GgufFile, name: str) -> Matrix:
    tensor = file.tensors[name]
    num_rows = tensor.shape[1] if len(tensor.shape) == 2 else 1
    return Matrix(tensor.type, (tensor.shape[0], num_rows), file.read(name))


def _shared_output(base: ModelInfo, token_map: Ints | None) -> Matrix:
    """Rows of the base model's output matrix, straight from its file."""
    with GgufFile(base.path) as file:
        matrix = _read(file, base.output_tensor)
        if token_map is None:
            return matrix
        rows = np.ascontiguousarray(file.read_rows(base.output_tensor, token_map))
    return Matrix(matrix.type, (matrix.shape[0], len(token_map)), rows)


def _stack(matrices: list[Matrix]) -> Matrix:
    if len(matrices) == 1:
        return matrices[0]
    shape = (matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices))
    return Matrix(matrices[0].type, shape, np.concatenate([m.data for m in matrices]))
