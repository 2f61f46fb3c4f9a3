"""What became of the drafts of one request, counted late: a step only keeps what it tried."""

from __future__ import annotations

from collections import Counter

from gorgon.speculation.tree import DraftTree

_MANY = 64  # trees that are kept before they are counted


class Tally:
    """Drafts and accepted drafts by depth, from 1, and by source."""

    def __init__(self) -> None:
        self.drafted_by_depth: Counter[int] = Counter()
        self.accepted_by_depth: Counter[int] = Counter()
        self.drafted_by_source: Counter[str] = Counter()
        self.accepted_by_source: Counter[str] = Counter()
        self._kept: list[tuple[DraftTree, tuple[int, ...]]] = []

    def add(self, tree: DraftTree, path: tuple[int, ...]) -> None:
        """Note the tree of a step and the nodes of it that were accepted, root first."""
        self._kept.append((tree, path))
        if len(self._kept) >= _MANY:
            self.count()

    def count(self) -> None:
        """Bring the counts up to date."""
        for tree, path in self._kept:
            depths, sources = tree.shape.depths, tree.sources
            self.drafted_by_depth.update(depths[1:])
            self.drafted_by_source.update(sources[1:])
            self.accepted_by_depth.update([depths[node] for node in path[1:]])
            self.accepted_by_source.update([sources[node] for node in path[1:]])
        self._kept.clear()
