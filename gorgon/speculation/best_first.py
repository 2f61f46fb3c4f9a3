"""Trees grown best draft first, where all guesses are known before the first one is taken.

A heap holds, for every node that was taken, the likeliest guess below it that was not. The
likeliest of these is the next draft; its next sibling and the first guess below it follow into the
heap. So drafts come in the order of their survival, and none is made that is not wanted.

Knows neither requests nor what a step costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from gorgon.speculation.candidates import Candidates
from gorgon.speculation.rows import Row


def grow(candidates: Candidates, rows: Mapping[int, Row]) -> Iterator[float]:
    """Add one draft after the other, the likeliest first; the survival of each.

    Args:
        candidates: what is grown; its roots have no drafts yet.
        rows: what is guessed below each root.
    """
    survivals, add = candidates.survivals, candidates.add
    heap: list[tuple[float, int, int, float, Row]] = []
    for root, row in rows.items():
        stated = row.stated[0]
        prob = stated / (stated + (1.0 - stated) * row.odds)
        heap.append((-prob, root, 0, prob, row))
    heapq.heapify(heap)
    while heap:
        negative, parent, rank, prob, row = heap[0]
        token = row.tokens[rank]
        node = add(parent, token, prob, row.source(token))
        rank += 1
        if rank < len(row.tokens):
            stated = row.stated[rank]
            prob = stated / (stated + (1.0 - stated) * row.odds)
            heapq.heapreplace(heap, (-prob * survivals[parent], parent, rank, prob, row))
        else:
            heapq.heappop(heap)
        below = row.below(token)
        if below is not None:
            stated = below.stated[0]
            prob = stated / (stated + (1.0 - stated) * below.odds)
            heapq.heappush(heap, (negative * prob, node, 0, prob, below))
        yield -negative
