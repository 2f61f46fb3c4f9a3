"""The drafts that a step could carry, for all its requests, and the trees made of those it does.

Nodes are numbers; the first ones are the requests' roots. Every node knows its parent and its
survival: the probability that it is accepted, the product of the probabilities on its path.

    roots       0           1           survival 1
               / \\         |
    drafts    2   4         3           each at most its parent's

Knows neither where guesses come from nor what a step costs.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence

from gorgon.speculation.tree import DraftTree, Source, root_only, shape_of


class Candidates:
    """Grows by single drafts, chains or levels; ``trees`` takes the likeliest.

    Args:
        roots: the root token of each request.
        max_depths: how deep each request's tree may be; its answer may be nearly at its end.
    """

    def __init__(self, roots: Sequence[int], max_depths: Sequence[int]) -> None:
        self.num_roots = len(roots)
        self.tokens = list(roots)
        self.parents = list(range(len(roots)))
        self.depths = [0] * len(roots)
        self.probs = [1.0] * len(roots)
        self.survivals = [1.0] * len(roots)
        self.sources = [Source.ROOT] * len(roots)
        self._owners = list(range(len(roots)))
        self.max_depths = max_depths
        self._next: dict[int, int] = {}  # of chains: the node below

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_drafts(self) -> int:
        """Nodes that are not roots."""
        return len(self.tokens) - self.num_roots

    def owner(self, node: int) -> int:
        """The root that ``node`` lies below."""
        return self._owners[node]

    def room_below(self, node: int) -> int:
        """How much deeper the tree of ``node`` may go."""
        return self.max_depths[self._owners[node]] - self.depths[node]

    def with_room(self, nodes: Iterable[int]) -> list[int]:
        """Those of ``nodes`` that there is room below."""
        owners, depths, limits = self._owners, self.depths, self.max_depths
        return [node for node in nodes if depths[node] < limits[owners[node]]]

    def unused_token(self, parent: int) -> int:
        """A token that no draft below ``parent`` has."""
        drafts = range(self.num_roots, len(self.tokens))
        taken = {self.tokens[node] for node in drafts if self.parents[node] == parent}
        return next(token for token in itertools.count() if token not in taken)

    def add(self, parent: int, token: int, prob: float, source: Source) -> int:
        """One draft below ``parent``, which has none with that token."""
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.probs.append(prob)
        self.survivals.append(self.survivals[parent] * prob)
        self.depths.append(self.depths[parent] + 1)
        self.sources.append(source)
        self._owners.append(self._owners[parent])
        return node

    def cut(self, count: int) -> None:
        """Forget all nodes but the first ``count``."""
        for facts in (self.tokens, self.parents, self.depths, self.probs, self.survivals):
            del facts[count:]
        del self.sources[count:], self._owners[count:]
        self._next.clear()

    def add_chain(
        self,
        root: int,
        tokens: Sequence[int],
        probs: Sequence[float],
        floor: float,
        source: Source,
    ) -> None:
        """``tokens`` below each other and ``root``, which has no drafts yet.

        Args:
            root: the request's root.
            tokens: the first one comes after the root.
            probs: how probable each is once the one before has come.
            floor: survival below which a node is not wanted.
            source: whose guesses they are.
        """
        products = itertools.accumulate(probs[: self.room_below(root)], operator.mul)
        survivals = [survival for survival in products if survival >= floor]
        if not survivals:
            return
        first, count = len(self.tokens), len(survivals)
        nodes = range(first, first + count)
        parents = [root, *nodes][:count]
        self._next.update(zip(parents, nodes, strict=True))
        self.tokens += tokens[:count]
        self.parents += parents
        self.probs += probs[:count]
        self.survivals += survivals
        self._note(count, root, source)
        self.depths[first:] = range(1, 1 + count)

    def add_level(
        self,
        parents: Sequence[int],
        tokens: Sequence[Sequence[int]],
        probs: Sequence[Sequence[float]],
        floor: float,
        source: Source,
    ) -> dict[int, int]:
        """The guesses below each of ``parents``; only further levels may follow.

        A token that a chain holds there already becomes likelier.

        Args:
            parents: nodes with room below, each once.
            tokens: ranked guesses below each of them.
            probs: their probabilities, falling.
            floor: survival below which a node is not wanted.
            source: whose guesses they are.

        Returns:
            The nodes that hold these guesses, each with its row.
        """
        rows: dict[int, int] = {}
        for row, parent in enumerate(parents):
            survival, known = self.survivals[parent], self._next.get(parent)
            first = len(self.tokens)
            for token, prob in zip(tokens[row], probs[row], strict=True):
                if survival * prob < floor:
                    break
                if known is not None and self.tokens[known] == token:
                    self._agree(known, prob)
                    rows[known] = row
                else:
                    self.tokens.append(token)
                    self.probs.append(prob)
                    self.survivals.append(survival * prob)
            count = len(self.tokens) - first
            self.parents += [parent] * count
            self._note(count, parent, source)
            rows.update(dict.fromkeys(range(first, first + count), row))
        return rows

    def _note(self, count: int, parent: int, source: Source) -> None:
        """What is the same for ``count`` new nodes below ``parent``."""
        self.depths += [self.depths[parent] + 1] * count
        self.sources += [source] * count
        self._owners += [self._owners[parent]] * count

    def _agree(self, node: int, prob: float) -> None:
        """A second source names ``node`` with ``prob``.

        The two are taken as independent evidence: it fails to come only where both are wrong.
        """
        self.sources[node] = Source.BOTH
        self.probs[node] = 1.0 - (1.0 - self.probs[node]) * (1.0 - prob)
        below: int | None = node
        while below is not None:
            self.survivals[below] = self.survivals[self.parents[below]] * self.probs[below]
            below = self._next.get(below)

    def ranked(self, nodes: Iterable[int]) -> list[int]:
        """``nodes``, likeliest first, parents before children; fastest when nearly so already."""
        return sorted(nodes, key=self.survivals.__getitem__, reverse=True)

    def trees(self, chosen: Sequence[int]) -> list[DraftTree]:
        """One tree for each root, of the drafts in ``chosen``.

        Nodes come depth-first with likelier siblings first, so that the likeliest path lies in
        one piece in the KV cache.

        Args:
            chosen: a leading part of ``ranked``.
        """
        below: defaultdict[int, list[int]] = defaultdict(list)
        for node in chosen:
            below[self.parents[node]].append(node)
        return [self._tree(root, below) for root in range(self.num_roots)]

    def _tree(self, root: int, below: dict[int, list[int]]) -> DraftTree:
        if root not in below:
            return root_only(self.tokens[root])
        places: dict[int, int] = {}  # of the nodes, in their order
        stack = [root]
        while stack:
            node = stack.pop()
            places[node] = len(places)
            if node in below:
                stack += reversed(below[node])
        return DraftTree(
            shape_of(tuple([places[self.parents[node]] for node in places])),
            tuple([self.tokens[node] for node in places]),
            tuple([self.probs[node] for node in places]),
            tuple([self.sources[node] for node in places]),
        )
