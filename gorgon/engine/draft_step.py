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

    def _ranked(self) -> list[int]:
        """Drafts that may be left out, the likeliest first."""
        first = self._num_sure
        return [node for node in self.candidates.by_survival() if node >= first]

    def choose(self, spent: float = 0.0) -> budget.Choice:
        """The best number of drafts beside the roots and the fixed trees."""
        survivals = [self.candidates.survivals[node] for node in self._ranked()]
        return budget.choose(np.array(survivals, np.float64), self._num_sure, self._curve, spent)

    def floor(self, spent: float) -> float:
        """Survival below which no draft can pay, at the rate to be had so far."""
        return budget.least_survival(self._num_sure, self._curve, self.choose(spent).rate)

    def price(self, choice: budget.Choice) -> float:
        """Survival that one more draft beside those chosen must have to pay."""
        return budget.least_survival(self._num_sure + choice.num_drafts, self._curve, choice.rate)

    def trees(self, num_drafts: int) -> list[DraftTree]:
        """The trees of the fixed drafts and the ``num_drafts`` likeliest of the others."""
        fixed = range(self.candidates.num_roots, self._num_sure)
        return self.candidates.trees([*fixed, *self._ranked()[:num_drafts]])
