"""Medusa heads: independent, all depths in one graph.

Head i reads h, the hidden state after the final norm at position t, and guesses token t + 2 + i
(Medusa, section 2.1):

    z = h + SiLU(W h + b)     for each residual block
    guess = top_k(softmax(M z))

M is the heads' own output matrix, one for all or one each, or the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence

from gorgon.backend import Drafts, DraftState, Floats, Guesses, Ints, Level, Noted, Terms
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile
from gorgon.llama.heads_file import HeadsInfo
from gorgon.llama.heads_graph import SIZES, Ahead, Graph, Graphs, pieces
from gorgon.llama.heads_guesses import Ranking, merged
from gorgon.llama.heads_weights import Device, Weights
from gorgon.llama.tensors import join, part, shape_of


class MedusaHeads:
    """See ``Heads`` in heads.py."""

    window, searches, drafts = 0, False, False  # one call computes all depths anyway

    def __init__(self, info: HeadsInfo, weights: Weights, device: Device, ranking: Ranking) -> None:
        self._info, self._weights, self._device = info, weights, device
        self._ranking, self.top_k = ranking, ranking.top_k
        self.num_heads = info.num_heads
        self._graphs, self._ahead = Graphs(self._make), Ahead()
        self.begins = device.staging_type is not None

    @staticmethod
    def stacks(file: GgufFile, info: HeadsInfo) -> list[list[str]]:
        """Tensors by what they multiply: every head's first block reads the same state."""
        heads = range(info.num_heads)
        stacks = [[_name(head, 0, "weight") for head in heads]]
        stacks += [
            [_name(head, block, "weight")] for head in heads for block in range(1, info.num_blocks)
        ]
        if _name(0, 0, "bias") in file.tensors:
            blocks = range(info.num_blocks)
            stacks += [[_name(head, block, "bias") for head in heads] for block in blocks]
        if info.output == "shared" or "output.weight" in file.tensors:
            return [*stacks, ["output.weight"]]
        return [*stacks, *([f"head.{head}.output.weight"] for head in heads)]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return self._weights.size

    def propose(self, state: DraftState) -> Guesses:
        """See ``Backend``."""
        hidden, graph = state.hidden[:, 0], self._ahead.take(state)
        if graph is not None:
            return self._guesses(graph, len(hidden))
        return merged([self._propose(hidden[piece]) for piece in pieces(len(hidden))])

    def begin(self, state: DraftState) -> None:
        """See ``Backend``."""
        self._ahead.take(None)
        if len(state.hidden) <= SIZES[-1]:
            self._ahead.start(state, self._filled(state.hidden[:, 0]))

    def _propose(self, hidden: Floats) -> Guesses:
        graph = self._filled(hidden)
        graph.run()
        return self._guesses(graph, len(hidden))

    def _filled(self, hidden: Floats) -> Graph:
        graph = self._graphs.at_least(len(hidden))
        graph.inputs[0].array[: len(hidden)] = hidden
        return graph

    def _guesses(self, graph: Graph, count: int) -> Guesses:
        return self._ranking.read(graph.outputs, count, range(1, 1 + self.num_heads))

    def search(self, state: DraftState) -> list[Level]:
        """Never called; see ``searches``."""
        raise AssertionError("independent heads guess for all depths at once")

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        """Never called; see ``drafts``."""
        raise AssertionError("independent heads guess for all depths at once")

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        """Never asked for: the guesses of ``propose`` are for all depths."""
        raise AssertionError("independent heads guess for all depths at once")

    def close(self) -> None:
        """Free weights and graphs."""
        self._ahead.close()
        self._graphs.close()
        self._weights.close()
        self._device.close()

    def _make(self, rows: int) -> Graph:
        return Graph(self._device, [(self._info.num_embd, rows)], self._build)

    def _build(self, context: int, inputs: Sequence[int]) -> Sequence[int]:
        """What the ranking reads; columns are all heads of the first row, of the second ..."""
        num_embd, rows = shape_of(inputs[0])
        state = ggml.reshape_3d(context, inputs[0], num_embd, 1, rows)
        for block in range(self._info.num_blocks):
            state = self._block(context, block, state, rows)
        return self._ranking.find(context, self._logits(context, state, rows))

    def _block(self, context: int, block: int, state: int, rows: int) -> int:
        """``z + SiLU(W z + b)`` of all heads, [num_embd, num_heads, rows]."""
        num_embd, num_heads = self._info.num_embd, self.num_heads
        weights = self._weights
        if block == 0:
            flat = ggml.reshape_2d(context, state, num_embd, rows)
            product = weights.multiply(context, _name(0, 0, "weight"), flat)
        else:
            names = [_name(head, block, "weight") for head in range(num_heads)]
            product = self._each(context, names, state, rows)
        product = ggml.reshape_3d(context, product, num_embd, num_heads, rows)
        if _name(0, block, "bias") in weights:
            product = ggml.add(context, product, weights.tensor(_name(0, block, "bias")))
        return int(ggml.add(context, ggml.silu(context, product), state))

    def _each(self, context: int, names: list[str], state: int, rows: int) -> int:
        """One matrix a head, each times its own state: [all their rows, rows]."""
        num_embd = self._info.num_embd
        flat = ggml.reshape_2d(context, state, num_embd * self.num_heads, rows)
        products = [
            self._weights.multiply(context, name, part(context, flat, head * num_embd, num_embd))
            for head, name in enumerate(names)
        ]
        return join(context, products, 0)

    def _logits(self, context: int, state: int, rows: int) -> int:
        """Of all heads, [num_outputs, num_heads * rows]."""
        columns = self.num_heads * rows
        if "output.weight" in self._weights:
            flat = ggml.reshape_2d(context, state, self._info.num_embd, columns)
            return self._weights.multiply(context, "output.weight", flat)
        names = [f"head.{head}.output.weight" for head in range(self.num_heads)]
        logits = self._each(context, names, state, rows)
        return int(ggml.reshape_2d(context, logits, self._info.num_outputs, columns))


def _name(head: int, block: int, kind: str) -> str:
    return f"head.{head}.block.{block}.{kind}"
