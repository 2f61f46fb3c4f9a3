"""One step's candidates beside what they would cost."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from gorgon.engine.sequence import Sequence
from gorgon.speculation import budget
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.tree import DraftTree


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
        self._num_sure = len(candidates)
        self._curve = curve
        self.choice = budget.choose(np.empty(0), self._num_sure, curve)

    def choose(self, spent: float = 0.0) -> budget.Choice:
        """Find the best number of drafts beside the roots and the fixed trees, and keep it."""
        survivals = np.array(self.candidates.survivals[self._num_sure :], np.float64)
        survivals[::-1].sort()
        self.choice = budget.choose(survivals, self._num_sure, self._curve, spent)
        return self.choice

    def floor(self) -> float:
        """Survival below which no draft can pay, at the rate of the last choice."""
        return budget.least_survival(self._num_sure, self._curve, self.choice.rate)

    def price(self) -> float:
        """Survival that one more draft beside those last chosen must have to pay."""
        num_tokens = self._num_sure + self.choice.num_drafts
        return budget.least_survival(num_tokens, self._curve, self.choice.rate)

    def trees(self) -> list[DraftTree]:
        """The trees of the fixed drafts and the likeliest of the others, as last chosen."""
        first = self.candidates.num_roots
        fixed = list(range(first, self._num_sure))
        if self.choice.num_drafts:
            ranked = [node for node in self.candidates.by_survival() if node >= self._num_sure]
            fixed += ranked[: self.choice.num_drafts]
        return self.candidates.trees(fixed)
