"""Conditioned heads (Hydra): each depth sees the tokens drafted above it.

One recurrent block serves every depth. At position t, with h the states after the final norm, e
the base's token embeddings, x the tokens and n(v) = rms_norm(v):

    c     = SiLU(window.in [n(h[t-1]), n(e(x[t])), n(h[t-2]), n(e(x[t-1]))])     once a row
    s[0]  = h[t] + window.state c          b = window.gate c                      once a row
    u     = [n(s[k]), n(e(x[t+1+k]))]                                             every node
    s[k+1] = s[k] + block.down (SiLU(block.gate u + b) * (block.up u))
    guess = top_k(softmax(output s[k+1]))

What goes from a node to those below it is [s[k+1], b]. docs/heads.md has the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gorgon.backend import DraftState, Floats, Guesses, Ints
from gorgon.llama import ggml
from gorgon.llama.embeddings import Embeddings
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.heads_graph import Graph, Graphs, best, pieces
from gorgon.llama.heads_guesses import Ranking, merged
from gorgon.llama.heads_weights import Device, Weights
from gorgon.llama.tensors import part, shape_of

EPSILON = 1e-6  # of every rms_norm


class ConditionedHeads:
    """See ``Heads`` in heads.py."""

    def __init__(
        self,
        info: HeadsInfo,
        weights: Weights,
        device: Device,
        ranking: Ranking,
        top_k: int,
        embeddings: Embeddings,
    ) -> None:
        self._info, self._weights, self._device = info, weights, device
        self._ranking, self.top_k, self._embeddings = ranking, top_k, embeddings
        self.num_heads, self.window = info.num_heads, info.window
        self._state_size = info.num_embd + (info.num_hidden if info.window else 0)
        self._roots = Graphs(self._make_root)
        self._nodes = Graphs(self._make_node)

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

    def _propose(self, hidden: Floats, tokens: Ints) -> Guesses:
        graph, count, num_embd = self._roots.at_least(len(hidden)), len(hidden), self._info.num_embd
        pairs = graph.inputs[0].array.reshape(-1, 1 + self.window, 2, num_embd)
        pairs[:count, :, 0] = hidden
        pairs[:count, :, 1] = self._embeddings.read(tokens)
        graph.run()
        # b lies behind the window's share of s[0].
        bias = graph.outputs[3].array[:count, num_embd:] if self.window else None
        return self._guesses(graph, count, bias, 1)

    def _deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        graph, count, num_embd = self._nodes.at_least(len(states)), len(states), self._info.num_embd
        pairs = graph.inputs[0].array.reshape(-1, 2, num_embd)
        pairs[:count, 0] = states[:, :num_embd]
        pairs[:count, 1] = self._embeddings.read(tokens)
        bias = states[:, num_embd:] if self.window else None
        if bias is not None:
            graph.inputs[1].array[:count] = bias
        graph.run()
        return self._guesses(graph, count, bias, depth)

    def _guesses(self, graph: Graph, count: int, bias: Floats | None, depth: int) -> Guesses:
        num_embd, shape = self._info.num_embd, (-1, 1, self.top_k)
        states = np.empty((count, self._state_size), np.float32)
        states[:, :num_embd] = graph.outputs[2].array[:count]
        if bias is not None:
            states[:, num_embd:] = bias
        ids, probs = (port.array.reshape(shape)[:count] for port in graph.outputs[:2])
        return self._ranking(ids, probs, depth, states)

    def close(self) -> None:
        """Free weights and graphs."""
        self._roots.close()
        self._nodes.close()
        self._weights.close()
        self._device.close()

    def _make_root(self, rows: int) -> Graph:
        shape = (self._info.num_embd, 2 * (1 + self.window), rows)
        return Graph(self._device, [shape], self._build_root)

    def _make_node(self, rows: int) -> Graph:
        shapes: list[tuple[int, ...]] = [(self._info.num_embd, 2, rows)]
        if self.window:
            shapes.append((self._info.num_hidden, rows))
        return Graph(self._device, shapes, self._build_node)

    def _build_root(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """From [h[t], e(x[t+1]), h[t-1], e(x[t]) ...] a row."""
        num_embd = self._info.num_embd
        raw, normed = self._flat(context, inputs[0])
        state = part(context, raw, 0, num_embd)
        if not self.window:
            return self._build_block(context, normed, state, None)
        earlier = part(context, normed, 2 * num_embd, 2 * num_embd * self.window)
        summary = ggml.silu(context, self._weights.multiply(context, "window.in.weight", earlier))
        shares = self._weights.multiply(context, "window.state.weight", summary)
        state = ggml.add(context, part(context, shares, 0, num_embd), state)
        root = part(context, normed, num_embd, num_embd)
        pair = ggml.concat(context, ggml.rms_norm(context, state, EPSILON), root, 0)
        bias = part(context, shares, num_embd, self._info.num_hidden)
        return *self._build_block(context, pair, state, bias), shares

    def _build_node(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """From [s[k], e(x[t+1+k])] and, if there is a window, b."""
        raw, normed = self._flat(context, inputs[0])
        state = part(context, raw, 0, self._info.num_embd)
        return self._build_block(context, normed, state, inputs[1] if self.window else None)

    def _build_block(
        self, context: int, pair: int, state: int, bias: int | None
    ) -> tuple[int, int, int]:
        """Ids, probabilities and s[k+1] from u, s[k] and b."""
        num_hidden, weights = self._info.num_hidden, self._weights
        wide = weights.multiply(context, "block.gate.weight", pair)
        gate, up = part(context, wide, 0, num_hidden), part(context, wide, num_hidden, num_hidden)
        if bias is not None:
            gate = ggml.add(context, gate, bias)
        product = ggml.swiglu_split(context, gate, up)
        down = weights.multiply(context, "block.down.weight", product)
        state = ggml.add(context, down, state)
        logits = weights.multiply(context, "output.weight", state)
        return *best(context, logits, self.top_k), state

    def _flat(self, context: int, x: int) -> tuple[int, int]:
        """``x`` [num_embd, n, rows] as it is and with every vector normalised, [.., rows]."""
        normed = ggml.rms_norm(context, x, EPSILON)
        num_embd, count, *rows = shape_of(x)
        shape = (num_embd * count, rows[0] if rows else 1)
        return ggml.reshape_2d(context, x, *shape), ggml.reshape_2d(context, normed, *shape)
