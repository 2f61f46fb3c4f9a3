"""Filling trees of a fixed shape with the heads' guesses, all trees at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gorgon.backend import Guesses
from gorgon.engine.heads_calls import Above
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.tree import Source, TreeShape

# Guesses at a depth below nodes that were taken from the guesses before; None on failure.
Deepen = Callable[[Guesses, Sequence[Above], int], Guesses | None]


@dataclass(slots=True)
class Filling:
    """A shape on its way: the candidate for each node of it that is filled already."""

    root: int
    shape: TreeShape
    nodes: dict[int, int]


def fill(
    candidates: Candidates,
    trees: Sequence[tuple[int, TreeShape]],
    guesses: Guesses,
    deepen: Deepen,
    max_drafts: int,
) -> None:
    """Add the nodes of ``trees``, (root, shape) each, level by level.

    Independent heads have said everything in ``guesses``; conditioned ones are asked again for
    each depth, about the nodes that have something below them.
    """
    fillings = [Filling(root, shape, {0: root}) for root, shape in trees]
    rows = {(i, 0): i for i in range(len(trees))}  # the row of guesses below a node
    for depth in range(1, max(shape.max_depth for _, shape in trees) + 1):
        level = 0 if guesses.states is not None else depth - 1
        inner: list[tuple[int, int]] = []  # (tree, node) to go on from
        above: list[Above] = []  # the same nodes
        for i, filling in enumerate(fillings):
            for node in _nodes_at(filling, depth):
                row = rows[i, filling.shape.parents[node]]
                token = _add(candidates, filling, node, guesses, row, level, max_drafts)
                if token is not None and filling.shape.children[node]:
                    inner.append((i, node))
                    above.append(Above(filling.root, row, token))
        if not inner:
            return
        if guesses.states is None:
            rows = {(i, node): i for i, node in inner}
            continue
        below = deepen(guesses, above, depth + 1)
        if below is None:
            return
        guesses, rows = below, {key: row for row, key in enumerate(inner)}


def _nodes_at(filling: Filling, depth: int) -> list[int]:
    shape = filling.shape
    return [
        node
        for node in range(1, len(shape))
        if shape.depths[node] == depth and shape.parents[node] in filling.nodes
    ]


def _add(
    candidates: Candidates,
    filling: Filling,
    node: int,
    guesses: Guesses,
    row: int,
    level: int,
    max_drafts: int,
) -> int | None:
    """Fill one node, if there is room; its token."""
    parent, rank = filling.nodes[filling.shape.parents[node]], filling.shape.ranks[node]
    if candidates.room_below(parent) <= 0 or candidates.num_drafts >= max_drafts:
        return None
    token = int(guesses.tokens[row, level, rank])
    prob = float(guesses.probs[row, level, rank])
    filling.nodes[node] = candidates.add(parent, token, prob, Source.HEADS)
    return token
