"""Fixed trees of any size for experiments: the likeliest nodes under typical head accuracies."""

from __future__ import annotations

import heapq
from functools import lru_cache

from gorgon.request import TreePaths

# Share of the guesses that are right, by depth and rank: about those of the Medusa paper's heads
# for Vicuna-7B. Only their order matters here.
_DEPTHS = (0.56, 0.32, 0.20, 0.15)
_RANKS = (1.0, 0.22, 0.11, 0.07, 0.05, 0.04, 0.03, 0.025, 0.02, 0.017)


@lru_cache(maxsize=64)
def tree_paths(size: int, num_heads: int = len(_DEPTHS)) -> TreePaths:
    """The ``size - 1`` likeliest paths below a root, taken best first (Medusa, section 2.3.3)."""
    heads = min(num_heads, len(_DEPTHS))
    heap: list[tuple[float, tuple[int, ...]]] = [
        (-_DEPTHS[0] * share, (rank,)) for rank, share in enumerate(_RANKS)
    ]
    heapq.heapify(heap)
    paths: list[tuple[int, ...]] = []
    while heap and len(paths) < size - 1:
        survival, path = heapq.heappop(heap)
        paths.append(path)
        if len(path) < heads:
            for rank, share in enumerate(_RANKS):
                heapq.heappush(heap, (survival * _DEPTHS[len(path)] * share, (*path, rank)))
    return tuple(paths)
