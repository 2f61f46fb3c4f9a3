"""What a ggml tensor looks like from outside, and how they are cut and joined."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.llama import ggml

_DTYPES: dict[int, type[np.generic]] = {ggml.TYPE_F32: np.float32, ggml.TYPE_I32: np.int32}


class _Head(ctypes.Structure):
    """The beginning of ``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


def shape_of(tensor: int) -> tuple[int, ...]:
    """Contiguous dimension first, trailing ones left out after the second."""
    shape = list(_Head.from_address(tensor).ne)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def type_of(tensor: int) -> int:
    """Its ggml type."""
    return int(_Head.from_address(tensor).type)


def row_bytes(tensor: int) -> int:
    """Bytes from one row to the next."""
    return int(_Head.from_address(tensor).nb[1])


def empty_like(tensor: int) -> npt.NDArray[Any]:
    """An array for the elements of a float or integer tensor, the contiguous dimension last."""
    return np.empty(shape_of(tensor)[::-1], _DTYPES[_Head.from_address(tensor).type])


def view(tensor: int) -> npt.NDArray[Any]:
    """The elements of a contiguous tensor in host memory, without a copy."""
    return array_at(ggml.get_data(tensor), tensor)


def array_at(address: int, tensor: int) -> npt.NDArray[Any]:
    """What lies at ``address`` as an array for the elements of ``tensor``."""
    array = empty_like(tensor)
    memory = (ctypes.c_char * array.nbytes).from_address(address)
    return np.ndarray(array.shape, array.dtype, buffer=memoryview(memory))


def part(context: int, tensor: int, first: int, count: int) -> int:
    """Elements ``first`` to ``first + count - 1`` of every row of ``tensor`` [m, n], as a view."""
    num_rows, stride = shape_of(tensor)[1], row_bytes(tensor)
    return int(ggml.view_2d(context, tensor, count, num_rows, stride, 4 * first))


def join(context: int, tensors: list[int], dimension: int) -> int:
    """``tensors`` behind each other along ``dimension``."""
    joined = tensors[0]
    for tensor in tensors[1:]:
        joined = int(ggml.concat(context, joined, tensor, dimension))
    return joined


def make_context(num_tensors: int, graph_nodes: int = 0) -> int:
    """A ggml context that declares tensors, and a graph if it shall have nodes; free it."""
    size = ggml.tensor_overhead() * (num_tensors + 1)
    if graph_nodes:
        size += ggml.graph_overhead_custom(graph_nodes, False)
    return int(ggml.init(ggml.InitParams(size, None, True)))
