"""Conditioned heads that draft a step in one call of the native library: native/drafts.cpp.

Between two passes of the model Python is slow, and a step of the heads is little else: each level
is a graph of a tenth of a millisecond, with the choice of what to ask next behind it.
"""

from __future__ import annotations

import ctypes
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
# Of ``struct Step``: what it is told, and what comes of it.
_COUNTS = ("num_roots", "num_asked", "num_heads", "top_k", "num_tested", "num_seconds")
_TOLD = ("asked", "rooms", "seconds", "shifts")
_NOISE = ("seeds", "places", "strengths")
_CHAINS = ("chain_roots", "chain_sizes", "chain_tokens", "chain_probs")
_FOUND = ("tested", "tested_probs", "sizes", "parents", "tokens", "sources", "probs")
_NOTED = ("noted", "noted_sizes", "noted_rows", "ids")  # of ``struct States``
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


class _States(ctypes.Structure):
    """``struct States``."""

    _fields_ = (
        ("known", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
        ("num_noted", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _NOTED),
    )


class _Step(ctypes.Structure):
    """``struct Step``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS),
        *((name, ctypes.c_void_p) for name in (*_TOLD, "top")),
        *((name, ctypes.c_double) for name in ("top_rate", "least_gain")),
        *((name, ctypes.c_double * 3) for name in ("propose", "deepen")),
        ("num_chains", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in (*_CHAINS, *_NOISE)),
        ("num_drafts", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("rate", "spent", "survival")),
        *((name, ctypes.c_void_p) for name in _FOUND),
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
        self._noted, self._noted_sizes = _numbers("i", _MAX_ROOTS), _numbers("i", _MAX_ROOTS)
        self._noted_rows = _numbers("i", _MAX_ROOTS * num_pairs)
        self._ids, self._known = _numbers("i", _MAX_ROOTS), np.empty(0, np.float32)
        self._last = _numbers("i", _MAX_ROOTS * num_pairs)
        self._tested, self._tested_probs = (
            _numbers("i", _MAX_ROOTS * NUM_TESTED),
            _numbers("d", _MAX_ROOTS),
        )
        self._rows, self._times = _numbers("i", num_heads), _numbers("d", num_heads)
        self._asked, self._rooms = _numbers("i", _MAX_ROOTS), _numbers("i", _MAX_ROOTS)
        self._seconds = _numbers("d", _MAX_TOKENS)
        self._shifts = _numbers("d", _MAX_ROOTS * num_heads)
        self._chain_roots, self._chain_sizes = _numbers("i", _MAX_ROOTS), _numbers("i", _MAX_ROOTS)
        self._chain_tokens, self._chain_probs = (
            _numbers("i", _MAX_TOKENS),
            _numbers("d", _MAX_TOKENS),
        )
        self._seeds, self._places = _numbers("Q", _MAX_ROOTS), _numbers("q", _MAX_ROOTS)
        self._strengths = _numbers("d", _MAX_ROOTS)
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
        for name in (*_TOLD, *_CHAINS, *_NOISE, *_FOUND):
            setattr(self._step, name, _address(getattr(self, "_" + name)))
        self._states = _States()
        for name in _NOTED:
            setattr(self._states, name, _address(getattr(self, "_" + name)))
        self._arguments = (
            ctypes.addressof(self._heads),
            ctypes.addressof(self._step),
            ctypes.addressof(self._states),
            _address(self._last),
            _address(self._rows),
            _address(self._times),
        )

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """See ``Heads.draft``."""
        count = len(ids)
        self._note(noted, hidden)
        self._ids[:count] = array("i", ids)
        self._last[: len(tokens)] = array("i", tokens)
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
            self._tested[: count * step.num_tested].tolist(),
            self._tested_probs[:count].tolist(),
            list(calls),
        )

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

    def _note(self, noted: Noted, hidden: int) -> None:
        states = self._states
        if noted.known is not self._known:
            self._known, states.known = noted.known, noted.known.ctypes.data
        states.hidden, states.num_noted = hidden, len(noted.ids)
        self._noted[: len(noted.ids)] = array("i", noted.ids)
        self._noted_sizes[: len(noted.ids)] = array("i", noted.sizes)
        self._noted_rows[: len(noted.rows)] = array("i", noted.rows)

    def _order(self, terms: Terms) -> None:
        step = self._step
        step.num_roots, step.num_asked = len(terms.rooms), len(terms.asked)
        step.num_seconds, step.least_gain = len(terms.seconds), terms.least_gain
        step.propose[:], step.deepen[:] = terms.propose, terms.deepen
        step.top, step.top_rate = terms.top.buffer_info()[0], terms.top_rate
        self._asked[: len(terms.asked)] = array("i", terms.asked)
        self._rooms[: len(terms.rooms)] = array("i", terms.rooms)
        self._seconds[: len(terms.seconds)] = array("d", terms.seconds)
        self._shifts[: len(terms.shifts)] = array("d", terms.shifts)
        for i, noise in enumerate(terms.noises):
            if noise is not None:
                self._seeds[i], self._places[i] = noise.seed, noise.place
        self._strengths[: len(terms.strengths)] = array("d", terms.strengths)
        step.num_chains = len(terms.chains)
        first = 0
        for i, (root, chain) in enumerate(terms.chains.items()):
            end = first + len(chain[0])
            self._chain_roots[i], self._chain_sizes[i] = root, end - first
            self._chain_tokens[first:end] = array("i", chain[0])
            self._chain_probs[first:end] = array("d", chain[1])
            first = end

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
