"""Which token tree a request tries next: its shape filled with the heads' guesses."""

from __future__ import annotations

from functools import lru_cache

from gorgon.backend import Backend
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
        self._num_heads, self._max_guesses = backend.num_heads, backend.max_guesses
        self._default = fit(default, self._num_heads, self._max_guesses, len(default))

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
        root, tokens = sequence.tokens[-1], sequence.guess_tokens
        if tokens is None or sequence.num_remaining < 2:
            return root_only(root)
        shape = sequence.shape
        if (
            shape.max_depth >= sequence.num_remaining
            or len(shape) > max_nodes
            or shape.num_branches > max_branches
        ):
            shape = fit(shape, sequence.num_remaining - 1, self._max_guesses, max_nodes)
            shape = limit_branches(shape, max_branches)
        guesses = tokens.tolist()
        drafted = [
            guesses[depth - 1][rank]
            for depth, rank in zip(shape.depths[1:], shape.ranks[1:], strict=True)
        ]
        return DraftTree(shape, (root, *drafted))


@lru_cache(maxsize=512)
def fit(shape: TreeShape, max_depth: int, max_guesses: int, max_nodes: int) -> TreeShape:
    """``shape`` without nodes too deep, of too high a rank, or past the first ``max_nodes``."""
    keep = [
        node
        for node in range(len(shape))
        if shape.depths[node] <= max_depth and shape.ranks[node] < max_guesses
    ]
    return shape.pruned(keep[: max(max_nodes, 1)])[0]


@lru_cache(maxsize=512)
def limit_branches(shape: TreeShape, max_branches: int) -> TreeShape:
    """``shape`` with the first ``max_branches`` of its branches."""
    keep = [node for node in range(len(shape)) if shape.branches[node][0] < max_branches]
    return shape.pruned(keep)[0]
