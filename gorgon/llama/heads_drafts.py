"""Conditioned heads that draft a step in one call of the native library: native/drafts.cpp.

Between two passes of the model Python is slow, and a step of the heads is little else: each level
is a graph of a tenth of a millisecond, with the choice of what to ask next behind it.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

import numpy as np

from gorgon.backend import Drafts, DraftState, Nodes, Terms
from gorgon.errors import HeadsError
from gorgon.llama.context import MAX_SEQUENCES
from gorgon.llama.embeddings import Embeddings
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.heads_graph import SIZES, Graph, Graphs
from gorgon.llama.heads_guesses import NativeRanking
from gorgon.llama.heads_weights import Device

_MAX_ROWS = SIZES[-1]  # of a graph
_MAX_ROOTS, _MAX_TOKENS = MAX_SEQUENCES, 4096  # of a step
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
        *((name, ctypes.c_int64) for name in ("num_roots", "num_asked", "num_heads", "top_k")),
        ("num_seconds", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("asked", "rooms", "seconds", "shifts", "top")),
        *((name, ctypes.c_double) for name in ("top_rate", "least_gain")),
        *((name, ctypes.c_double * 3) for name in ("propose", "deepen")),
        ("num_drafts", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("rate", "spent", "survival")),
        *((name, ctypes.c_void_p) for name in ("sizes", "parents", "tokens", "probs")),
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
        self._hidden = np.empty((_MAX_ROOTS, num_pairs, info.num_embd), np.float32)
        self._last = np.empty((_MAX_ROOTS, num_pairs), np.int32)
        self._first = np.empty((_MAX_ROOTS, top_k), np.int32)
        self._first_probs = np.empty((_MAX_ROOTS, top_k), np.float32)
        self._rows, self._times = _numbers("i", num_heads), _numbers("d", num_heads)
        self._asked, self._rooms = _numbers("i", _MAX_ROOTS), _numbers("i", _MAX_ROOTS)
        self._seconds = _numbers("d", _MAX_TOKENS)
        self._shifts = _numbers("d", _MAX_ROOTS * num_heads)
        self._sizes, self._probs = _numbers("i", _MAX_ROOTS), _numbers("d", _MAX_TOKENS)
        self._parents, self._tokens = _numbers("i", _MAX_TOKENS), _numbers("i", _MAX_TOKENS)
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
        self._step = _Step(num_heads=num_heads, top_k=top_k)
        for name in ("asked", "rooms", "seconds", "shifts", "sizes", "parents", "tokens", "probs"):
            setattr(self._step, name, _address(getattr(self, "_" + name)))
        self._arguments = (
            ctypes.addressof(self._heads),
            ctypes.addressof(self._step),
            *(a.ctypes.data for a in (self._hidden, self._last, self._first, self._first_probs)),
            _address(self._rows),
            _address(self._times),
        )

    def draft(self, state: DraftState, terms: Terms) -> Drafts:
        """See ``Backend.draft``."""
        count = len(terms.asked)
        self._hidden[:count], self._last[:count] = state.hidden, state.tokens
        self._order(terms)
        num_calls = self._draft(*self._arguments)
        if num_calls < 0:
            raise HeadsError("the heads failed on the device")
        step = self._step
        calls = zip(self._rows[:num_calls], self._times[:num_calls], strict=True)
        return Drafts(
            step.num_drafts,
            step.rate,
            step.spent,
            step.survival,
            self._trees(len(terms.rooms)),
            self._first[:count].tolist(),
            self._first_probs[:count].tolist(),
            list(calls),
        )

    def _trees(self, count: int) -> list[Nodes]:
        """Parents, tokens and probabilities of the nodes of ``count`` trees."""
        trees, first = [], 0
        for size in self._sizes[:count]:
            end = first + size
            parents, tokens = self._parents[first:end], self._tokens[first:end]
            trees.append((tuple(parents), tuple(tokens), tuple(self._probs[first:end])))
            first = end
        return trees

    def _order(self, terms: Terms) -> None:
        step = self._step
        step.num_roots, step.num_asked = len(terms.rooms), len(terms.asked)
        step.num_seconds, step.least_gain = len(terms.seconds), terms.least_gain
        step.propose[:], step.deepen[:] = terms.propose, terms.deepen
        step.top, step.top_rate = _address(terms.top), terms.top_rate
        self._asked[: len(terms.asked)] = array("i", terms.asked)
        self._rooms[: len(terms.rooms)] = array("i", terms.rooms)
        self._seconds[: len(terms.seconds)] = array("d", terms.seconds)
        self._shifts[: len(terms.shifts)] = array("d", terms.shifts)

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


def _numbers(code: str, size: int) -> array[Any]:
    return array(code, [0]) * size


def _address(numbers: array[Any]) -> int:
    return numbers.buffer_info()[0]
