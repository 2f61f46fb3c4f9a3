"""Token trees: their shape, their drafts, and how they are laid out as sequences.

A tree knows nothing of models, caches or requests. Node 0 is the root, the token that the model
has already drawn; every other node is a draft below its parent. Parents come before children.

                 shape                        as sequences (one per leaf)
            0 (root)                          leaf 2: 0 1 2
           / \\                                leaf 3: 0 1 3
          1   4        parents                leaf 4: 0 4
         / \\           (-, 0, 1, 1, 0)
        2   3
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from gorgon.errors import RequestError
from gorgon.request import TreePaths

MAX_NODES = 64  # root included; beyond this no machine known to us gains


@dataclass(frozen=True)
class TreeShape:
    """The form of a tree, without tokens.

    ``parents[i] < i`` for every node but the root, whose parent is 0 by convention.
    ``ranks[i]`` says which guess of the head at that depth node i takes (0 is the likeliest).

    Worked out at once, since every step meets new shapes: ``depths``, distances from the root;
    ``children`` of every node, in node order; ``branches`` that every node lies on, one for each
    leaf. The branches of a node are consecutive numbers, and a node's first branch is that of its
    first child, so branch 0 follows first children from the root.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    depths: tuple[int, ...] = field(init=False, repr=False, compare=False)
    children: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    branches: tuple[range, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parents, count = self.parents, len(self.parents)
        assert len(self.ranks) == count >= 1
        assert parents[0] == 0
        assert all(map(operator.lt, parents[1:], range(1, count)))
        depths = [0] * count
        children: list[list[int]] = [[] for _ in parents]
        for node in range(1, count):
            depths[node] = depths[parents[node]] + 1
            children[parents[node]].append(node)
        object.__setattr__(self, "depths", tuple(depths))
        object.__setattr__(self, "children", tuple(map(tuple, children)))
        object.__setattr__(self, "branches", _branches(parents))

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node."""
        return max(self.depths)

    @property
    def max_rank(self) -> int:
        """The highest rank used, so that a drafter knows how many guesses it needs."""
        return max(self.ranks)

    @property
    def num_branches(self) -> int:
        """How many leaves, and so sequences, the tree needs."""
        return len(self.branches[0])

    def path_to(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``, both included."""
        path = [node]
        while path[-1]:
            path.append(self.parents[path[-1]])
        return tuple(reversed(path))


def _branches(parents: Sequence[int]) -> tuple[range, ...]:
    widths = [0] * len(parents)  # leaves below each node, itself included
    for node in range(len(parents) - 1, 0, -1):
        widths[node] = widths[node] or 1
        widths[parents[node]] += widths[node]
    found, free = [range(widths[0] or 1)], [0] * len(parents)  # first branch for the next child
    for node in range(1, len(parents)):
        parent = parents[node]
        free[node] = first = free[parent]
        free[parent] = end = first + widths[node]
        found.append(range(first, end))
    return tuple(found)


class Source(enum.StrEnum):
    """Who drafted a node."""

    ROOT = "root"  # drawn by the model, not drafted
    HEADS = "heads"
    LOOKUP = "lookup"
    BOTH = "both"
    FILL = "fill"  # not a guess: it keeps the batch at its size


@dataclass(frozen=True)
class DraftTree:
    """A tree with its tokens; ``tokens[0]`` is the root, already drawn by the model.

    ``probs[i]`` states how probable node i is once its parent has come, ``sources[i]`` who
    drafted it. Both are for statistics and feedback, empty where nobody asks: acceptance does not
    read them.
    """

    shape: TreeShape
    tokens: tuple[int, ...]
    probs: tuple[float, ...] = ()
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.tokens)
        assert count == len(self.shape.parents)
        assert len(self.probs) == len(self.sources) in (0, count)

    def __len__(self) -> int:
        return len(self.tokens)

    def child_with(self, node: int, token: int) -> int | None:
        """The child of ``node`` that holds ``token``, if any."""
        for child in self.shape.children[node]:
            if self.tokens[child] == token:
                return child
        return None


ROOT_SHAPE = TreeShape((0,), (0,))


def root_only(token: int) -> DraftTree:
    """The one-node tree: plain decoding."""
    return DraftTree(ROOT_SHAPE, (token,), (1.0,), (Source.ROOT,))


@lru_cache(maxsize=4096)
def shape_of(parents: tuple[int, ...]) -> TreeShape:
    """The shape with these parents, ranks in the order of siblings; built once for each form."""
    seen: dict[int, int] = {}
    ranks = [0]
    for parent in parents[1:]:
        ranks.append(seen.get(parent, 0))
        seen[parent] = ranks[-1] + 1
    return TreeShape(parents, tuple(ranks))


class Split(NamedTuple):
    """What is left of a tree when one path is kept.

    ``common[b]`` says how many nodes of the path branch b has, ``cut`` are the branches that have
    others too, ``winner`` is a branch that has the whole path, the lowest.
    """

    common: list[int]
    cut: list[int]
    winner: int


def split(shape: TreeShape, path: tuple[int, ...]) -> Split:
    """``shape`` with ``path`` kept."""
    branches, last = shape.branches, path[-1]
    common = [1] * len(branches[0])
    for node in path[1:]:
        for branch in branches[node]:
            common[branch] += 1
    # Every leaf but one that the path ends in is rejected.
    cut, winner = list(range(len(common))), branches[last].start
    if not shape.children[last]:
        cut.remove(winner)
    return Split(common, cut, winner)


@lru_cache(maxsize=256)
def chain(length: int) -> TreeShape:
    """``length`` drafts below each other, each the likeliest guess of its head."""
    return TreeShape((0, *range(length)), (0,) * (length + 1))


@lru_cache(maxsize=256)
def from_paths(paths: TreePaths) -> TreeShape:
    """The tree that has exactly ``paths``, in the form of the Medusa paper and its code.

    A path names the rank taken at every depth: ``((0,), (0, 0), (1,))`` is the best guess of head
    0, the best of head 1 below it, and the second best of head 0. Order does not matter. Nodes
    come out depth-first with lower ranks first, which keeps the likeliest path contiguous in the
    KV cache.

    Raises:
        RequestError: if a path is empty, negative, duplicate, lacks its parent, or there are
            more than ``MAX_NODES - 1`` of them.
    """
    _check_paths(paths)
    parents, ranks = [0], [0]
    number: dict[tuple[int, ...], int] = {(): 0}
    for path in sorted(paths):
        number[path] = len(parents)
        parents.append(number[path[:-1]])
        ranks.append(path[-1])
    return TreeShape(tuple(parents), tuple(ranks))


def _check_paths(paths: Sequence[tuple[int, ...]]) -> None:
    if len(paths) > MAX_NODES - 1:
        raise RequestError(f"tree has {len(paths)} nodes, at most {MAX_NODES - 1}", field="tree")
    known = set(paths)
    if len(known) < len(paths):
        raise RequestError("tree names a path twice", field="tree")
    for path in paths:
        if not path or any(rank < 0 for rank in path):
            raise RequestError(
                f"tree path {list(path)} must be a non-empty list of ranks from 0", field="tree"
            )
        if len(path) > 1 and path[:-1] not in known:
            raise RequestError(
                f"tree path {list(path)} lacks its parent {list(path[:-1])}", field="tree"
            )


def parse_paths(text: str) -> TreeShape:
    """The tree written as ``"0;0,0;1"``: ``;`` between paths, ``,`` between ranks.

    Raises:
        RequestError: see ``from_paths``; also when a rank is no number.
    """
    try:
        paths = tuple(
            tuple(int(rank) for rank in path.split(",")) for path in text.split(";") if path
        )
    except ValueError as error:
        raise RequestError(f"tree '{text}' is not like '0;0,0;1'", field="tree") from error
    return from_paths(paths)
