"""Conditioned heads that draft a step in one call of the native library: native/drafts.cpp.

Between two passes of the model Python is slow, and a step of the heads is little else: each level
is a graph of a tenth of a millisecond, with the choice of what to ask next behind it.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from gorgon.backend import NUM_TESTED, Drafts, Nodes, Noted, Terms
from gorgon.errors import HeadsError
from gorgon.llama.context import MAX_SEQUENCES
from gorgon.llama.embeddings import Embeddings
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.heads_graph import SIZES, Graph, Graphs
from gorgon.llama.heads_guesses import NativeRanking
from gorgon.llama.heads_weights import Device

_MAX_ROWS = SIZES[-1]  # of a graph
_MAX_ROOTS, _MAX_TOKENS = MAX_SEQUENCES, 4096  # of a step
# Of ``struct Step``: what is told anew for every step, and where what comes of it lies.
_TOLD = struct.Struct("@6q P 8d")
_FOUND = (
    *("calls", "times", "tested", "tested_probs"),
    *("sizes", "parents", "tokens", "sources", "probs"),
)
_NUM_OWN = 13  # pointers into what is told
_Build = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_bool, ctypes.c_int64)


class _Graph(ctypes.Structure):
    """``struct HeadsGraph``."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("graph", "pairs", "bias", "state", "shares", "found")
    )


class _Heads(ctypes.Structure):
    """``struct Heads``."""

    _fields_ = (
        ("backend", ctypes.c_void_p),
        ("roots", ctypes.POINTER(_Graph)),
        ("nodes", ctypes.POINTER(_Graph)),
        ("build", _Build),
        ("max_rows", ctypes.c_int64),
        ("num_embd", ctypes.c_int64),
        ("num_hidden", ctypes.c_int64),
        ("num_pairs", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("table_row", ctypes.c_size_t),
        ("to_float", ctypes.c_void_p),
        ("token_map", ctypes.c_void_p),
        ("maps", ctypes.c_void_p),
    )


class _Step(ctypes.Structure):
    """``struct Step``."""

    _fields_ = (
        ("told", ctypes.c_char * _TOLD.size),
        *((name, ctypes.c_int64) for name in ("num_heads", "top_k", "num_tested", "num_drafts")),
        *((name, ctypes.c_double) for name in ("rate", "spent", "survival")),
        *((name, ctypes.c_void_p) for name in _FOUND),
        ("own", ctypes.c_void_p * _NUM_OWN),
    )


class NativeDrafts:
    """What ``ConditionedHeads.draft`` does.

    Args:
        native: the library.
        info: of the heads.
        device: the processor.
        ranking: what ranks their guesses.
        embeddings: of the model.
        roots: graphs for guesses below roots.
        nodes: graphs for guesses below drafts.
    """

    def __init__(
        self,
        native: Any,
        info: HeadsInfo,
        device: Device,
        ranking: NativeRanking,
        embeddings: Embeddings,
        roots: Graphs,
        nodes: Graphs,
    ) -> None:
        self._draft, self._info, self._graphs = native.gorgon_kernels_draft, info, (roots, nodes)
        self._ports = [(_Graph * (_MAX_ROWS + 1))() for _ in self._graphs]
        num_pairs, num_heads, top_k = 1 + info.window, info.num_heads, ranking.top_k
        self._known, self._known_address = np.empty(0, np.float32), 0
        self._calls, self._times = _numbers("i", num_heads), _numbers("d", num_heads)
        self._tested = _numbers("i", _MAX_ROOTS * NUM_TESTED)
        self._tested_probs = _numbers("d", _MAX_ROOTS)
        self._sizes, self._probs = _numbers("i", _MAX_ROOTS), _numbers("d", _MAX_TOKENS)
        self._parents, self._tokens = _numbers("i", _MAX_TOKENS), _numbers("i", _MAX_TOKENS)
        self._sources = _numbers("i", _MAX_TOKENS)
        self._heads = _Heads(
            backend=device.handle,
            roots=self._ports[0],
            nodes=self._ports[1],
            build=_Build(self._build),
            max_rows=_MAX_ROWS,
            num_embd=info.num_embd,
            num_hidden=info.num_hidden if info.window else 0,
            num_pairs=num_pairs,
            table=embeddings.address,
            table_row=embeddings.row_bytes,
            to_float=embeddings.to_float,
            token_map=ranking.token_map_address,
            maps=ranking.maps_address,
        )
        num_tested = min(NUM_TESTED, top_k)
        self._step = _Step(num_heads=num_heads, top_k=top_k, num_tested=num_tested)
        for name in _FOUND:
            setattr(self._step, name, _address(getattr(self, "_" + name)))
        self._arguments = ctypes.addressof(self._heads), ctypes.addressof(self._step)

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """See ``Heads.draft``."""
        step, known = self._step, noted.known
        if known is not self._known:
            self._known, self._known_address = known, known.ctypes.data
        told = self._tell(noted, ids, tokens, terms)
        addresses = [numbers.buffer_info()[0] for numbers in told]
        num_calls = self._draft(*self._arguments, self._known_address, hidden, *addresses)
        if num_calls < 0:
            raise HeadsError("the heads failed on the device")
        calls = zip(self._calls[:num_calls], self._times[:num_calls], strict=True)
        return Drafts(
            step.num_drafts,
            step.rate,
            step.spent,
            step.survival,
            self._trees(len(terms.rooms)),
            self._tested[: len(ids) * step.num_tested].tolist(),
            self._tested_probs[: len(ids)].tolist(),
            list(calls),
        )

    def _tell(
        self, noted: Noted, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> tuple[array[int], array[float], array[int]]:
        """Pack the terms into the step; the numbers that go with them."""
        ints = [*noted.ids, *noted.sizes, *noted.rows, *terms.asked, *ids, *tokens, *terms.rooms]
        doubles = [*terms.seconds, *terms.shifts, *terms.strengths]
        draws = [(noise.seed, noise.place) if noise else (0, 0) for noise in terms.noises]
        for root, (chain, probs) in terms.chains.items():
            ints += (root, len(chain), *chain)
            doubles += probs
        _TOLD.pack_into(
            self._step,
            0,
            len(noted.ids),
            len(noted.rows),
            len(ids),
            len(terms.rooms),
            len(terms.seconds),
            len(terms.chains),
            terms.top.buffer_info()[0],
            terms.top_rate,
            terms.least_gain,
            *terms.propose,
            *terms.deepen,
        )
        return array("i", ints), array("d", doubles), array("Q", itertools.chain(*draws))

    def _trees(self, count: int) -> dict[int, Nodes]:
        """The trees below ``count`` roots that are more than these."""
        trees, first = {}, 0
        for root, size in enumerate(self._sizes[:count]):
            if size > 1:
                nodes = slice(first, first + size)
                parents, tokens = tuple(self._parents[nodes]), tuple(self._tokens[nodes])
                trees[root] = Nodes(
                    parents, tokens, tuple(self._probs[nodes]), self._sources[nodes]
                )
            first += size
        return trees

    def _build(self, nodes: bool, rows: int) -> bool:
        """Called by the library for a number of rows that it has not seen."""
        try:
            graph = self._graphs[nodes].at_least(rows)
        except HeadsError:
            return False
        self._ports[nodes][rows] = _ports(graph, nodes)
        self._heads.num_parts = graph.outputs[1].array.shape[-2]
        return True


def _ports(graph: Graph, nodes: bool) -> _Graph:
    state, found, *shares = [port.address for port in graph.outputs]
    pairs, *bias = [port.address for port in graph.inputs]
    return _Graph(graph.handle, pairs, *bias or (None,), state, *shares or (None,), found)


def _numbers(code: str, size: int) -> memoryview[Any]:
    return memoryview(array(code, [0]) * size)  # a view stays where it is


def _address(numbers: memoryview[Any]) -> int:
    return np.frombuffer(numbers, np.uint8).ctypes.data
