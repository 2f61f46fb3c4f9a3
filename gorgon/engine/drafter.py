"""Which token tree a request tries next: its shape filled with the heads' guesses."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import lru_cache

import numpy as np

from gorgon.backend import Backend, DraftState, Guesses
from gorgon.engine.sequence import Sequence
from gorgon.errors import RequestError
from gorgon.request import SpeculationParams
from gorgon.speculation.tree import ROOT_SHAPE, DraftTree, TreeShape, from_paths, root_only


class Drafter:
    """Fills trees from guesses.

    Args:
        backend: tells how many heads and guesses there are.
        default: the tree of requests that do not name one, cut to what the heads offer.
    """

    def __init__(self, backend: Backend, default: TreeShape) -> None:
        self._backend = backend
        self._num_heads, self._max_guesses = backend.num_heads, backend.max_guesses
        keep = [node for node in range(len(default)) if default.ranks[node] < self._max_guesses]
        self._default = fit(default.pruned(keep)[0], self._num_heads, len(default))[0]

    def shape_for(self, speculation: SpeculationParams) -> TreeShape:
        """The shape that a request asks for.

        Raises:
            RequestError: when its tree needs heads or guesses that there are not.
        """
        if speculation.mode == "normal":
            return ROOT_SHAPE
        if speculation.tree is None:
            return self._default
        shape = from_paths(speculation.tree)
        if shape.max_depth > self._num_heads:
            raise RequestError(
                f"tree is {shape.max_depth} deep, the heads look {self._num_heads} tokens ahead",
                field="tree",
            )
        if len(shape) > 1 and shape.max_rank >= self._max_guesses:
            raise RequestError(
                f"tree takes rank {shape.max_rank}, the heads give 0 to {self._max_guesses - 1}",
                field="tree",
            )
        return shape

    def propose(self, sequence: Sequence, max_nodes: int, max_branches: int) -> DraftTree:
        """The next tree of ``sequence``, with at most so many nodes and branches.

        Depth is cut to the tokens that may still come; the root's own draw is one of them.
        """
        root, drafted = sequence.tokens[-1], sequence.drafted
        if drafted is None or sequence.num_remaining < 2:
            return root_only(root)
        shape = sequence.shape
        if (
            shape.max_depth >= sequence.num_remaining
            or len(shape) > max_nodes
            or shape.num_branches > max_branches
        ):
            shape, kept = cut(shape, sequence.num_remaining - 1, max_nodes, max_branches)
            drafted = tuple(drafted[node - 1] for node in kept[1:])
        return DraftTree(shape, (root, *drafted))

    def guess(self, sequences: Seq[Sequence]) -> None:
        """Let the heads fill the trees of ``sequences``, each at its root.

        Raises:
            HeadsError: when the device fails; no tree is filled then.
        """
        width = 1 + self._backend.window
        hidden = [s.hidden for s in sequences if s.hidden is not None]
        tokens = [sequence.last_tokens(width) for sequence in sequences]
        guesses = self._backend.propose(DraftState(np.stack(hidden), np.stack(tokens)))
        shapes = [sequence.shape for sequence in sequences]
        fill = _fill if guesses.states is None else self._descend
        for sequence, drafted in zip(sequences, fill(shapes, guesses), strict=True):
            sequence.drafted = tuple(drafted[1:])

    def _descend(self, shapes: Seq[TreeShape], guesses: Guesses) -> list[list[int]]:
        """Tokens by node of trees that conditioned heads fill level by level, all trees at once."""
        drafted = [[0] * len(shape) for shape in shapes]
        parents = [(tree, 0) for tree in range(len(shapes))]  # of each row of guesses
        depth = 1
        while True:
            deeper = []
            for row, (tree, parent) in enumerate(parents):
                for node in shapes[tree].children[parent]:
                    token = int(guesses.tokens[row, 0, shapes[tree].ranks[node]])
                    drafted[tree][node] = token
                    if shapes[tree].children[node]:
                        deeper.append((row, tree, node, token))
            if not deeper:
                return drafted
            assert guesses.states is not None
            depth += 1
            states = guesses.states[[row for row, _, _, _ in deeper]]
            tokens = np.array([token for _, _, _, token in deeper], np.int32)
            guesses = self._backend.deepen(states, tokens, depth)
            parents = [(tree, node) for _, tree, node, _ in deeper]


def _fill(shapes: Seq[TreeShape], guesses: Guesses) -> list[list[int]]:
    """Tokens by node of trees that independent heads fill: depth d from head d - 1."""
    drafted = []
    for tokens, shape in zip(guesses.tokens.tolist(), shapes, strict=True):
        nodes = zip(shape.depths[1:], shape.ranks[1:], strict=True)
        drafted.append([0, *(tokens[depth - 1][rank] for depth, rank in nodes)])
    return drafted


def cut(
    shape: TreeShape, max_depth: int, max_nodes: int, max_branches: int
) -> tuple[TreeShape, tuple[int, ...]]:
    """``shape`` within limits, and which of its nodes are left."""
    shape, kept = fit(shape, max_depth, max_nodes)
    shape, left = limit_branches(shape, max_branches)
    return shape, tuple(kept[node] for node in left)


@lru_cache(maxsize=512)
def fit(shape: TreeShape, max_depth: int, max_nodes: int) -> tuple[TreeShape, tuple[int, ...]]:
    """``shape`` without nodes too deep or past the first ``max_nodes``; which ones are left."""
    keep = [node for node in range(len(shape)) if shape.depths[node] <= max_depth]
    return shape.pruned(keep[: max(max_nodes, 1)])


@lru_cache(maxsize=512)
def limit_branches(shape: TreeShape, max_branches: int) -> tuple[TreeShape, tuple[int, ...]]:
    """The first ``max_branches`` branches of ``shape``, and which of its nodes are left."""
    keep = [node for node in range(len(shape)) if shape.branches[node][0] < max_branches]
    return shape.pruned(keep)
