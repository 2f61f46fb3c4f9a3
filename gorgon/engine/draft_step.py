"""One step's candidates beside what they would cost."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from gorgon.engine.sequence import Sequence
from gorgon.speculation import budget
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.tree import DraftTree, Source


class DraftStep:
    """What is known while the drafts of a step are chosen.

    Args:
        candidates: drafts so far; those of fixed trees and nothing else.
        sequences: the requests, in the order of the candidates' roots.
        free: indices of those whose trees are to be chosen.
        curve: seconds of a step by its tokens, as far as there is room.
    """

    def __init__(
        self,
        candidates: Candidates,
        sequences: Seq[Sequence],
        free: list[int],
        curve: budget.Floats,
    ) -> None:
        self.candidates, self.sequences, self.free = candidates, sequences, free
        self._num_sure, self._curve = len(candidates), curve
        self._num_room = len(curve) - 1 - self._num_sure
        self._flattest = budget.least_survival(self._num_sure, curve, 1.0)
        self._ranked, self._least_ranked = np.empty(0, np.intp), 0.0
        self.choice = budget.choose(np.empty(0), self._num_sure, curve)

    def choose(self, spent: float = 0.0) -> budget.Choice:
        """Find the best number of drafts beside the roots and the fixed trees, and keep it."""
        nodes, survivals = self.candidates.ranked(self._num_sure)
        self._ranked = nodes[: self._num_room]
        if 0 < self._num_room <= len(nodes):
            self._least_ranked = float(survivals[self._num_room - 1])
        self.choice = budget.choose(survivals, self._num_sure, self._curve, spent)
        return self.choice

    def floor(self) -> float:
        """Survival below which no draft can pay at the rate of the last choice, or has no room."""
        return max(self.choice.rate * self._flattest, self._least_ranked)

    def add_level(
        self, parents: list[int], tokens: list[list[int]], probs: list[list[float]]
    ) -> dict[int, int]:
        """Add what the heads guess below ``parents``; see ``Candidates.add_level``."""
        return self.candidates.add_level(parents, tokens, probs, self.floor(), Source.HEADS)

    def price(self) -> float:
        """Survival that one more draft beside those last chosen must have to pay."""
        num_tokens = self._num_sure + self.choice.num_drafts
        return budget.least_survival(num_tokens, self._curve, self.choice.rate)

    def trees(self) -> list[DraftTree]:
        """The trees of the fixed drafts and the likeliest of the others, as last chosen."""
        fixed = range(self.candidates.num_roots, self._num_sure)
        chosen = self._ranked[: self.choice.num_drafts].tolist()
        return self.candidates.trees([*fixed, *chosen])
