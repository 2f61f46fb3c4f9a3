"""The drafts that a step could carry, for all its requests, and the trees made of those it does.

Nodes are numbers; the first ones are the requests' roots. Every node knows its parent and its
survival: the probability that it is accepted, the product of the probabilities on its path.

    roots       0           1           survival 1
               / \\         |
    drafts    2   4         3           each at most its parent's

Knows neither where guesses come from nor what a step costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gorgon.speculation.tree import DraftTree, Source, root_only, shape_of

Floats = npt.NDArray[np.float64]


class Candidates:
    """Grows by ``add``; ``trees`` takes the likeliest.

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
        self._max_depths = max_depths
        self._children: list[dict[int, int]] = [{} for _ in roots]

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
        return self._max_depths[self._owners[node]] - self.depths[node]

    def add(self, parent: int, token: int, prob: float, source: Source) -> int:
        """A draft below ``parent``; a token that is there already becomes likelier.

        Two sources that name the same token are taken as independent evidence: it fails to come
        only where both are wrong.
        """
        node = self._children[parent].get(token)
        if node is not None:
            self._merge(node, prob, source)
            return node
        node = len(self.tokens)
        self._children[parent][token] = node
        self._children.append({})
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.probs.append(prob)
        self.survivals.append(self.survivals[parent] * prob)
        self.sources.append(source)
        self._owners.append(self._owners[parent])
        return node

    def _merge(self, node: int, prob: float, source: Source) -> None:
        if self.sources[node] is source:
            return
        self.sources[node] = Source.BOTH
        self.probs[node] = 1.0 - (1.0 - self.probs[node]) * (1.0 - prob)
        self._update_survival(node)

    def _update_survival(self, node: int) -> None:
        self.survivals[node] = self.survivals[self.parents[node]] * self.probs[node]
        for child in self._children[node].values():
            self._update_survival(child)

    def add_product(
        self,
        root: int,
        tokens: Sequence[Sequence[int]],
        probs: Sequence[Sequence[float]],
        floor: float,
        max_nodes: int,
    ) -> None:
        """The likeliest paths through independent heads (Medusa's Cartesian product).

        Args:
            root: the request's root.
            tokens: ranked guesses of each head.
            probs: their probabilities, falling.
            floor: survival below which a node is not wanted.
            max_nodes: nodes wanted at most.
        """
        depth_limit = min(self.room_below(root), len(tokens))
        heap: list[tuple[float, int, int, int]] = []

        def offer(parent: int, depth: int, rank: int) -> None:
            if depth < depth_limit and rank < len(tokens[depth]):
                survival = self.survivals[parent] * probs[depth][rank]
                if survival >= floor:
                    heapq.heappush(heap, (-survival, parent, depth, rank))

        offer(root, 0, 0)
        for _ in range(max_nodes):
            if not heap:
                break
            _, parent, depth, rank = heapq.heappop(heap)
            node = self.add(parent, tokens[depth][rank], probs[depth][rank], Source.HEADS)
            offer(parent, depth, rank + 1)
            offer(node, depth + 1, 0)

    def by_survival(self) -> list[int]:
        """All drafts, the likeliest first, parents before their children."""
        nodes = range(self.num_roots, len(self.tokens))
        return sorted(nodes, key=self.survivals.__getitem__, reverse=True)

    def trees(self, chosen: Sequence[int]) -> list[DraftTree]:
        """One tree for each root, of the drafts in ``chosen``.

        Nodes come depth-first with likelier siblings first, so that the likeliest path lies in
        one piece in the KV cache.

        Args:
            chosen: a leading part of ``by_survival()``.
        """
        below: dict[int, list[int]] = {}
        for node in chosen:
            below.setdefault(self.parents[node], []).append(node)
        return [self._tree(root, below) for root in range(self.num_roots)]

    def _tree(self, root: int, below: dict[int, list[int]]) -> DraftTree:
        if root not in below:
            return root_only(self.tokens[root])
        order: list[int] = []
        parents: list[int] = []
        stack = [(root, 0)]
        while stack:
            node, parent = stack.pop()
            place = len(order)
            order.append(node)
            parents.append(parent)
            stack += [(child, place) for child in reversed(below.get(node, ()))]
        return DraftTree(
            shape_of(tuple(parents)),
            tuple([self.tokens[node] for node in order]),
            tuple([self.probs[node] for node in order]),
            tuple([self.sources[node] for node in order]),
        )
