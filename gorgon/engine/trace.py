"""What a step tried, in the form that front ends show: only made when a request asks for it."""

from __future__ import annotations

from gorgon.request import TreeTrace
from gorgon.speculation.tree import DraftTree


def trace_tree(tree: DraftTree, path: tuple[int, ...]) -> TreeTrace:
    """``tree`` with the kept nodes ``path``, root first, and every node's stated survival."""
    parents, survival = tree.shape.parents, [1.0]
    probs = tree.probs or (1.0,) * len(tree)
    for node in range(1, len(tree)):
        survival.append(survival[parents[node]] * probs[node])
    sources = tuple(str(source) for source in tree.sources)
    return TreeTrace(parents, tree.tokens, sources, tuple(survival), path)
