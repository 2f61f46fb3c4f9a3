"""How often heads are right: the published figures, or a file's, for replaying them."""

from __future__ import annotations

import heapq
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gorgon.errors import BenchError

NUM_GUESSES = 10
_DECAY = 0.5  # of the chance of a rank to that of the rank before, where only sums are known


@dataclass(frozen=True, slots=True)
class Accuracies:
    """``ranks[d][r]`` is the chance that the guess of rank r at depth d + 1 is the next token.

    Given that everything above is right, and independent of the other depths.
    """

    name: str
    variant: Literal["medusa", "conditioned"]
    ranks: tuple[tuple[float, ...], ...]

    def expected_tokens(self, num_nodes: int) -> float:
        """Tokens a step of the best tree of so many nodes, root included: 1 + sum of survivals."""
        heap = [(-chance, 0) for chance in self.ranks[0]]
        heapq.heapify(heap)
        total = 1.0
        for _ in range(num_nodes - 1):
            if not heap:
                break
            survival, depth = heapq.heappop(heap)
            total -= survival
            if depth + 1 < len(self.ranks):
                for chance in self.ranks[depth + 1]:
                    heapq.heappush(heap, (survival * chance, depth + 1))
        return total


def from_top(top_1: float, top_5: float) -> tuple[float, ...]:
    """Chances by rank from two cumulative figures; ranks 1 to 9 fall off geometrically."""
    weights = [_DECAY**rank for rank in range(NUM_GUESSES - 1)]
    unit = (top_5 - top_1) / sum(weights[:4])
    return (top_1, *(unit * weight for weight in weights))


# Medusa heads as released for Vicuna-7B, greedy: top-1 and top-5 of heads 0 to 3.
VICUNA_MEDUSA = Accuracies(
    "vicuna-medusa",
    "medusa",
    tuple(itertools.starmap(from_top, ((0.56, 0.78), (0.32, 0.56), (0.20, 0.42), (0.15, 0.34)))),
)

# Conditioned heads are published as 3.26 tokens a step with 64 nodes. Accuracies by depth that
# give that: a head 0 above Medusa's, for it sees the root, and a mild fall with depth.
VICUNA_CONDITIONED = Accuracies(
    "vicuna-conditioned",
    "conditioned",
    tuple(itertools.starmap(from_top, ((0.62, 0.83), (0.58, 0.80), (0.55, 0.78), (0.53, 0.76)))),
)

PUBLISHED = {each.name: each for each in (VICUNA_MEDUSA, VICUNA_CONDITIONED)}


def load_accuracies(text: str) -> Accuracies:
    """A published set by name, or a JSON file ``{"variant": ..., "ranks": [[0.5, 0.1], ...]}``.

    Raises:
        BenchError: naming the file and what is wrong with it.
    """
    if text in PUBLISHED:
        return PUBLISHED[text]
    path = Path(text)
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path}: neither one of {', '.join(PUBLISHED)} nor a JSON file: {error}"
        ) from error
    return _check(found, path)


def _check(found: Any, path: Path) -> Accuracies:
    variant = found.get("variant") if isinstance(found, dict) else None
    if variant not in ("medusa", "conditioned"):
        raise BenchError(f"{path}: 'variant' must be 'medusa' or 'conditioned'")
    try:
        ranks = tuple(tuple(float(chance) for chance in head) for head in found["ranks"])
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path}: 'ranks' must be a list of numbers for each head") from error
    good = all(0 < len(r) <= 64 and min(r) >= 0 and sum(r) <= 1 for r in ranks) and ranks
    if not good or len(ranks) > 16 or len({len(r) for r in ranks}) > 1:
        raise BenchError(
            f"{path}: 'ranks' needs 1 to 16 heads, as many chances each, that sum to at most 1"
        )
    return Accuracies(path.stem, variant, ranks)
