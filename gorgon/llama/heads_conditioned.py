"""Conditioned heads (Hydra): each depth sees the tokens drafted above it.

One recurrent block serves every depth. At position t, with h the states after the final norm, e
the base's token embeddings, x the tokens and n(v) = rms_norm(v):

    c     = SiLU(window.in [n(h[t-1]), n(e(x[t])), n(h[t-2]), n(e(x[t-1]))])     once a row
    s[0]  = h[t] + window.state c          b = window.gate c                      once a row
    u     = [n(s[k]), n(e(x[t+1+k]))]                                             every node
    s[k+1] = s[k] + block.down (SiLU(block.gate u + b) * (block.up u))
    guess = top_k(softmax(output s[k+1]))

What goes from a node to those below it is [s[k+1], b]. docs/heads.md has the shapes. On the CPU
every depth is a call of its own, so that it can be left out; on a GPU, where a call costs more than
what it computes, ``search`` computes all depths in one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gorgon.backend import Drafts, DraftState, Floats, Guesses, Ints, Level, Noted, Terms
from gorgon.llama import ggml, heads_beam, kernels
from gorgon.llama.embeddings import Embeddings
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads_drafts import NativeDrafts
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.heads_graph import (
    SIZES,
    Ahead,
    Build,
    Graph,
    Graphs,
    Port,
    best,
    pieces,
    size_for,
)
from gorgon.llama.heads_guesses import NativeRanking, Ranking, joined, merged
from gorgon.llama.heads_weights import Device, Weights
from gorgon.llama.tensors import part, row_bytes, shape_of

EPSILON = 1e-6  # of every rms_norm
EMBEDDINGS = "embeddings"  # n(e(x)) of the heads' outputs, where the device is to search


class ConditionedHeads:
    """See ``Heads`` in heads.py."""

    def __init__(
        self,
        info: HeadsInfo,
        weights: Weights,
        device: Device,
        ranking: Ranking,
        embeddings: Embeddings,
    ) -> None:
        self._info, self._weights, self._device = info, weights, device
        self._ranking, self.top_k, self._embeddings = ranking, ranking.top_k, embeddings
        self.num_heads, self.window = info.num_heads, info.window
        self._state_size = info.num_embd + (info.num_hidden if info.window else 0)
        self._roots = Graphs(self._make_root)
        self._nodes = Graphs(self._make_node)
        self._beams, self._ahead = Graphs(self._make_beams), Ahead()
        self.searches = EMBEDDINGS in weights
        self.begins = self.searches and device.staging_type is not None
        native = kernels.functions()
        self._native: NativeDrafts | None = None
        if native is not None and isinstance(ranking, NativeRanking) and not self.searches:
            graphs = self._roots, self._nodes
            self._native = NativeDrafts(native, info, device, ranking, embeddings, *graphs)
        self.drafts = self._native is not None

    @staticmethod
    def stacks(_file: GgufFile, info: HeadsInfo) -> list[list[str]]:
        """Tensors by what they multiply."""
        stacks = [["block.gate.weight", "block.up.weight"], ["block.down.weight"]]
        if info.window:
            stacks += [["window.in.weight"], ["window.state.weight", "window.gate.weight"]]
        return [*stacks, ["output.weight"]]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return self._weights.size

    def propose(self, state: DraftState) -> Guesses:
        """See ``Backend``."""
        hidden, tokens = state.hidden, state.tokens
        return merged(
            [self._propose(hidden[piece], tokens[piece]) for piece in pieces(len(hidden))]
        )

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """See ``Backend``."""
        assert 2 <= depth <= self.num_heads
        return merged(
            [self._deepen(states[piece], tokens[piece], depth) for piece in pieces(len(states))]
        )

    def begin(self, state: DraftState) -> None:
        """See ``Backend``."""
        self._ahead.take(None)
        if len(state.hidden) <= SIZES[-1]:
            self._ahead.start(state, self._filled_beams(state.hidden, state.tokens))

    def search(self, state: DraftState) -> list[Level]:
        """See ``Backend``."""
        hidden, tokens = state.hidden, state.tokens
        graph = self._ahead.take(state)
        if graph is not None:
            return self._levels(graph, tokens)
        found = [self._search(hidden[piece], tokens[piece]) for piece in pieces(len(hidden))]
        return joined(found)

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """See ``Backend``."""
        assert self._native is not None
        return self._native.draft(noted, hidden, ids, tokens, terms)

    def _search(self, hidden: Floats, tokens: Ints) -> list[Level]:
        graph = self._filled_beams(hidden, tokens)
        graph.run()
        return self._levels(graph, tokens)

    def _filled_beams(self, hidden: Floats, tokens: Ints) -> Graph:
        graph = self._beams.at_least(len(hidden))
        self._fill_roots(graph, hidden, tokens)
        return graph

    def _levels(self, graph: Graph, tokens: Ints) -> list[Level]:
        """What ``graph`` found below ``tokens``, a row for each request."""
        (port,), count, top_k = graph.outputs, len(tokens), self.top_k
        places = heads_beam.layout(size_for(count), self.num_heads, top_k)
        found = port.array.ravel()
        ids, probs, chosen = map(found.take, (places.ids, places.probs, places.chosen))
        ids, chosen = ids.astype(np.int32), chosen.astype(np.int32)
        parents, ranks = heads_beam.locate(chosen, top_k)
        rows = [slice(at.start, at.start + count * at.width) for at in places.levels]
        guesses = self._ranking.rank_levels(ids[:, None], probs[:, None], rows)
        above = np.arange(count, dtype=np.int32), tokens[:, 0]
        levels = [Level(guesses[0], *above)]
        for depth, below in enumerate(guesses[1:]):
            size = len(below.tokens)
            parent, rank = parents[depth, :size], ranks[depth, :size]
            outputs = ids[places.levels[depth].start + parent, rank]
            levels.append(Level(below, parent, self._ranking.tokens(outputs)))
        return levels

    def _fill_roots(self, graph: Graph, hidden: Floats, tokens: Ints) -> None:
        pairs = graph.inputs[0].array
        pairs[: len(hidden), :, 0] = hidden
        pairs[: len(hidden), :, 1] = self._embeddings.read(tokens)

    def _propose(self, hidden: Floats, tokens: Ints) -> Guesses:
        graph, count, num_embd = self._roots.at_least(len(hidden)), len(hidden), self._info.num_embd
        self._fill_roots(graph, hidden, tokens)
        graph.run()
        state, *found = graph.outputs
        bias = None
        if self.window:  # b lies behind the window's share of s[0]
            bias = found.pop().array[:count, num_embd:]
        return self._guesses(state, found, bias, count, 1)

    def _deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        graph, count, num_embd = self._nodes.at_least(len(states)), len(states), self._info.num_embd
        pairs = graph.inputs[0].array
        pairs[:count, 0, 0] = states[:, :num_embd]
        pairs[:count, 0, 1] = self._embeddings.read(tokens)
        bias = states[:, num_embd:] if self.window else None
        if bias is not None:
            graph.inputs[1].array[:count] = bias
        graph.run()
        return self._guesses(graph.outputs[0], graph.outputs[1:], bias, count, depth)

    def _guesses(
        self, state: Port, found: Sequence[Port], bias: Floats | None, count: int, depth: int
    ) -> Guesses:
        states = np.empty((count, self._state_size), np.float32)
        states[:, : self._info.num_embd] = state.array[:count]
        if bias is not None:
            states[:, self._info.num_embd :] = bias
        return self._ranking.read(found, count, range(depth, depth + 1), states)

    def close(self) -> None:
        """Free weights and graphs."""
        self._ahead.close()
        self._roots.close()
        self._nodes.close()
        self._beams.close()
        self._weights.close()
        self._device.close()

    def _make_root(self, rows: int) -> Graph:
        return self._make(rows, 1 + self.window, self._build_root)

    def _make_beams(self, rows: int) -> Graph:
        return self._make(rows, 1 + self.window, self._build_beams)

    def _make_node(self, rows: int) -> Graph:
        bias = [(self._info.num_hidden, rows)] if self.window else []
        return self._make(rows, 1, self._build_node, bias)

    def _make(
        self, rows: int, pairs: int, build: Build, more: Sequence[tuple[int, ...]] = ()
    ) -> Graph:
        """A graph whose first input is [rows, pairs, 2, num_embd]: states, their embeddings."""
        num_embd = self._info.num_embd
        graph = Graph(self._device, [(num_embd, 2 * pairs, rows), *more], build)
        graph.inputs[0].array = graph.inputs[0].array.reshape(rows, pairs, 2, num_embd)
        return graph

    def _build_root(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """s[1], what the ranking reads and, behind the window's share of s[0], b."""
        state, root, shares = self._build_start(context, inputs[0])
        pair = self._pair(context, state, root)
        state, logits = self._build_block(context, pair, state, self._bias(context, shares))
        outputs = state, *self._ranking.find(context, logits)
        return outputs if shares is None else (*outputs, shares)

    def _build_beams(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """See ``heads_beam.build``."""
        state, root, shares = self._build_start(context, inputs[0])
        bias = self._bias(context, shares)

        def block(state: int, normed: int) -> tuple[int, int, int]:
            pair = self._pair(context, state, normed)
            state, logits = self._build_block(context, pair, state, bias)
            return *best(context, logits, self.top_k, self._device), state

        table, start = self._weights.tensor(EMBEDDINGS), (state, root)
        return heads_beam.build(context, table, block, start, self.num_heads)

    def _build_start(self, context: int, pairs: int) -> tuple[int, int, int | None]:
        """s[0], n(e(root)) and the window's shares, from [h[t], e(x[t+1]), h[t-1], e(x[t]) ...]."""
        num_embd = self._info.num_embd
        raw, normed = self._flat(context, pairs)
        state, root = part(context, raw, 0, num_embd), part(context, normed, num_embd, num_embd)
        if not self.window:
            return state, root, None
        earlier = part(context, normed, 2 * num_embd, 2 * num_embd * self.window)
        summary = ggml.silu(context, self._weights.multiply(context, "window.in.weight", earlier))
        shares = self._weights.multiply(context, "window.state.weight", summary)
        return int(ggml.add(context, part(context, shares, 0, num_embd), state)), root, shares

    def _bias(self, context: int, shares: int | None) -> int | None:
        if shares is None:
            return None
        return part(context, shares, self._info.num_embd, self._info.num_hidden)

    def _pair(self, context: int, state: int, root: int) -> int:
        return int(ggml.concat(context, ggml.rms_norm(context, state, EPSILON), root, 0))

    def _build_node(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """From [s[k], e(x[t+1+k])] and, if there is a window, b."""
        raw, normed = self._flat(context, inputs[0])
        state = part(context, raw, 0, self._info.num_embd)
        bias = inputs[1] if self.window else None
        state, logits = self._build_block(context, normed, state, bias)
        return state, *self._ranking.find(context, logits)

    def _build_block(
        self, context: int, pair: int, state: int, bias: int | None
    ) -> tuple[int, int]:
        """s[k+1] and its logits from u, s[k] and b, which nodes in a row may share."""
        num_hidden, weights = self._info.num_hidden, self._weights
        wide = weights.multiply(context, "block.gate.weight", pair)
        gate, up = part(context, wide, 0, num_hidden), part(context, wide, num_hidden, num_hidden)
        if bias is not None:
            gate = _add_to_rows(context, gate, bias)
        product = ggml.swiglu_split(context, gate, up)
        down = weights.multiply(context, "block.down.weight", product)
        state = int(ggml.add(context, down, state))
        return state, weights.multiply(context, "output.weight", state)

    def _flat(self, context: int, x: int) -> tuple[int, int]:
        """``x`` [num_embd, n, rows] as it is and with every vector normalised, [.., rows]."""
        normed = ggml.rms_norm(context, x, EPSILON)
        num_embd, count, *rows = shape_of(x)
        shape = (num_embd * count, rows[0] if rows else 1)
        return ggml.reshape_2d(context, x, *shape), ggml.reshape_2d(context, normed, *shape)


def _add_to_rows(context: int, x: int, bias: int) -> int:
    """``x`` [m, n] plus ``bias`` [m, requests], of which each is for n / requests rows in turn."""
    (size, rows), (_, requests) = shape_of(x), shape_of(bias)
    if rows == requests:
        return int(ggml.add(context, x, bias))
    stride, beams = row_bytes(x), rows // requests
    by_request = ggml.view_3d(context, x, size, beams, requests, stride, stride * beams, 0)
    stride = row_bytes(bias)
    each = ggml.view_3d(context, bias, size, 1, requests, stride, stride, 0)
    return int(ggml.reshape_2d(context, ggml.add(context, by_request, each), size, rows))
