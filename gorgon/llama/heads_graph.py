"""ggml graphs that are built once for a number of rows and run many times.

Knows nothing of heads. On the CPU, inputs and outputs are NumPy views of the tensors themselves;
on a GPU they are copied over, and a graph can be started long before its outputs are wanted.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from gorgon.backend import DraftState
from gorgon.errors import HeadsError
from gorgon.llama import ggml
from gorgon.llama.heads_weights import Device
from gorgon.llama.tensors import array_at, empty_like, make_context, shape_of, view

_MAX_NODES = 2048

# Row counts that graphs are built for; fewer rows are padded, more are cut into pieces.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def size_for(rows: int) -> int:
    """The size of the graph that computes ``rows`` rows, at most ``SIZES[-1]``."""
    return SIZES[bisect.bisect_left(SIZES, rows)]


def pieces(rows: int) -> list[slice]:
    """Rows 0 to ``rows - 1`` in pieces that a graph takes."""
    return [slice(first, first + SIZES[-1]) for first in range(0, rows, SIZES[-1])]


class Port:
    """A tensor as an array of NumPy's shape, the contiguous dimension last."""

    def __init__(self, tensor: int, device: Device) -> None:
        self._handle, self._tensor, self._buffer = device.handle, tensor, 0
        self.is_copy = not ggml.backend_buft_is_host(device.buffer_type)
        self.array: npt.NDArray[Any] = self._staging(device) if self.is_copy else view(tensor)
        self.address, self._size = self.array.ctypes.data, self.array.nbytes

    def _staging(self, device: Device) -> npt.NDArray[Any]:
        """Memory that the device reads and writes while this processor goes on, if it has such."""
        if device.staging_type is not None:
            size = ggml.nbytes(self._tensor)
            self._buffer = ggml.backend_buft_alloc_buffer(device.staging_type, size) or 0
        if not self._buffer:
            return empty_like(self._tensor)
        return array_at(ggml.backend_buffer_get_base(self._buffer), self._tensor)

    def close(self) -> None:
        """Free the memory that is not the tensor's own; ``array`` must not be used afterwards."""
        if self._buffer:
            ggml.backend_buffer_free(self._buffer)
            self._buffer = 0

    def push(self) -> None:
        """Queue what was written to ``array``, if it is a copy, for the device."""
        ggml.backend_tensor_set_async(self._handle, self._tensor, self.address, 0, self._size)

    def pull(self) -> None:
        """Queue what the device computes for ``array``, if it is a copy."""
        ggml.backend_tensor_get_async(self._handle, self._tensor, self.address, 0, self._size)


# Adds tensors to a context, from the inputs in it; names the outputs.
Build = Callable[[int, Sequence[int]], Sequence[int]]


class Graph:
    """One computation with fixed shapes.

    Args:
        device: where it runs.
        shapes: of the float inputs, contiguous dimension first.
        build: gives the outputs from the inputs.

    Raises:
        HeadsError: when the device has no room for it or cannot compute it.
    """

    def __init__(self, device: Device, shapes: Sequence[tuple[int, ...]], build: Build) -> None:
        self._device = device
        self._context = make_context(_MAX_NODES, graph_nodes=_MAX_NODES)
        inputs = [_new_input(self._context, shape) for shape in shapes]
        outputs = build(self._context, inputs)
        self.handle = ggml.new_graph_custom(self._context, _MAX_NODES, False)
        for tensor in outputs:
            ggml.set_output(tensor)
            ggml.build_forward_expand(self.handle, tensor)
        self._allocator = ggml.gallocr_new(device.buffer_type)
        self.inputs, self.outputs = list[Port](), list[Port]()
        self._status = ggml.STATUS_SUCCESS
        try:
            self._check()
        except HeadsError:
            self.close()
            raise
        self.inputs = [Port(tensor, device) for tensor in inputs]
        for port in self.inputs:
            port.array.fill(0)  # rows of padding must be finite
        self.outputs = [Port(tensor, device) for tensor in outputs]
        self._pushed, self._pulled = (
            [port for port in ports if port.is_copy] for ports in (self.inputs, self.outputs)
        )

    def _check(self) -> None:
        for i in range(ggml.graph_n_nodes(self.handle)):
            node = ggml.graph_node(self.handle, i)
            if not ggml.backend_supports_op(self._device.handle, node):
                raise HeadsError("this device cannot compute the heads; use --gpu-layers 0")
        if not ggml.gallocr_alloc_graph(self._allocator, self.handle):
            raise HeadsError("no memory to run the heads on this device; use fewer layers on it")

    def start(self) -> None:
        """Let the device compute ``outputs`` from ``inputs``, neither to be touched till the end.

        The end is ``finish``.
        """
        for port in self._pushed:
            port.push()
        self._status = ggml.backend_graph_compute_async(self._device.handle, self.handle)
        for port in self._pulled:
            port.pull()

    def finish(self) -> None:
        """Wait for what was started.

        Raises:
            HeadsError: when the device failed.
        """
        if self._pulled:  # else this processor has computed it
            ggml.backend_synchronize(self._device.handle)
        if self._status != ggml.STATUS_SUCCESS:
            raise HeadsError("the heads failed on the device")

    def run(self) -> None:
        """Compute ``outputs`` from ``inputs``.

        Raises:
            HeadsError: when the device fails.
        """
        self.start()
        self.finish()

    def close(self) -> None:
        """Free the memory of inputs and outputs; their arrays must not be used afterwards."""
        for port in (*self.inputs, *self.outputs):
            port.close()
        self.inputs, self.outputs = [], []
        ggml.gallocr_free(self._allocator)
        ggml.free(self._context)


class Graphs:
    """Graphs of one kind by number of rows, built when first needed."""

    def __init__(self, make: Callable[[int], Graph]) -> None:
        self._make = make
        self._by_size: dict[int, Graph] = {}

    def at_least(self, rows: int) -> Graph:
        """The graph that computes ``rows`` rows or a few more."""
        size = size_for(rows)
        graph = self._by_size.get(size)
        if graph is None:
            graph = self._by_size[size] = self._make(size)
        return graph

    def close(self) -> None:
        """Free them all."""
        for graph in self._by_size.values():
            graph.close()
        self._by_size.clear()


class Ahead:
    """A graph that was started on a state before anybody asked what comes of it."""

    def __init__(self) -> None:
        self._started: tuple[DraftState, Graph] | None = None

    def start(self, state: DraftState, graph: Graph) -> None:
        """Start ``graph``, whose inputs hold ``state``."""
        graph.start()
        self._started = state, graph

    def take(self, state: DraftState | None) -> Graph | None:
        """The graph that was started on this very ``state``, finished, if one was.

        Another one is waited for: its memory may be written to again.

        Raises:
            HeadsError: when the device failed.
        """
        if self._started is None:
            return None
        (known, graph), self._started = self._started, None
        graph.finish()
        return graph if known is state else None

    def close(self) -> None:
        """Wait for what was started and never asked for, before its memory is freed."""
        with contextlib.suppress(HeadsError):
            self.take(None)


def _new_input(context: int, shape: tuple[int, ...]) -> int:
    """A float tensor whose memory no other tensor of the graph gets."""
    new = ggml.new_tensor_2d if len(shape) == 2 else ggml.new_tensor_3d
    tensor = int(new(context, ggml.TYPE_F32, *shape))
    ggml.set_input(tensor)
    ggml.set_output(tensor)
    return tensor


_CHUNK = 256  # a GPU sorts so many numbers in one go, and thousands an order of magnitude slower


def best(context: int, logits: int, top_k: int, device: Device) -> tuple[int, int]:
    """The likeliest of ``logits`` [outputs, n].

    Returns:
        Indices [top_k, n], in no particular order, as integers or floats, and their
        probabilities, [1, top_k, n].
    """
    probs = ggml.soft_max(context, logits)
    if device.is_gpu and shape_of(logits)[0] % _CHUNK == 0:
        return best_of_chunks(context, probs, top_k)
    ids = ggml.top_k(context, probs, top_k)
    return int(ids), pick(context, probs, ids)


def best_of_chunks(context: int, probs: int, top_k: int) -> tuple[int, int]:
    """Those of ``probs`` [outputs, n]: the best of each chunk, then the best of these.

    Returns:
        Indices as floats, which hold them exactly, [top_k, n]; probabilities [1, top_k, n].
    """
    num_outputs, count = shape_of(probs)
    chunks = num_outputs // _CHUNK * count
    numbers = ggml.repeat_4d(
        context, ggml.arange(context, 0, num_outputs, 1), num_outputs, count, 1, 1
    )
    split = [ggml.reshape_2d(context, x, _CHUNK, chunks) for x in (probs, numbers)]
    chosen = ggml.top_k(context, split[0], top_k)
    finalists = [
        ggml.reshape_2d(context, pick(context, x, chosen), top_k * chunks // count, count)
        for x in split
    ]
    chosen = ggml.top_k(context, finalists[0], top_k)
    probs, ids = (pick(context, x, chosen) for x in finalists)
    return int(ggml.reshape_2d(context, ids, top_k, count)), probs


def pick(context: int, values: int, places: int) -> int:
    """``values`` [m, n] at ``places`` [k, n] of each column, [1, k, n]."""
    size, count = shape_of(values)
    return int(ggml.get_rows(context, ggml.reshape_3d(context, values, 1, size, count), places))
