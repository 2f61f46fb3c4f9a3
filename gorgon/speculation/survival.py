"""Correcting stated probabilities by what happens to them: per request, source and depth.

A draft that states probability p gets ``sigmoid(logit(p) + shift)``. The shift follows the
gradient of the log-loss (online logistic regression with a bias alone): each draft that was put to
the test moves it by ``rate * (came - stated)``. Small steps make it steady; some tens of tests move
it far enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_RATE = 0.10  # for the shift that all depths of a request share
_DEPTH_RATE = 0.05  # for the shift of one depth
_MAX_SHIFT = 4.0
_INHERIT_RATE = 0.05  # least weight of a finished request in what later ones start with
_MOST = 1.0 - 1e-4  # what states more could not be corrected


@dataclass(slots=True)
class Correction:
    """The shifts of one request for one source of drafts."""

    common: float = 0.0
    by_depth: list[float] = field(default_factory=lambda: [0.0] * 17)

    def shift(self, depth: int) -> float:
        """What is added to the logit of a draft at ``depth``."""
        return self.common + self.by_depth[min(depth, 16)]

    def shifts(self, num_depths: int) -> list[float]:
        """``shift`` for depths from 1 to ``num_depths``, at most 16."""
        common = self.common
        return [common + shift for shift in self.by_depth[1 : 1 + num_depths]]

    def odds(self, depth: int) -> float:
        """Odds against a draft at ``depth`` that states one half."""
        return math.exp(-self.shift(depth))

    def apply(self, probability: float, depth: int) -> float:
        """The corrected probability of one draft."""
        p = min(probability, _MOST)
        return p / (p + (1.0 - p) * self.odds(depth))

    def apply_each(self, probabilities: Sequence[float], depth: int) -> list[float]:
        """The corrected probabilities of several drafts."""
        odds = self.odds(depth)
        highest = _MOST / (_MOST + (1.0 - _MOST) * odds)
        return [p / (p + (1.0 - p) * odds) if p < _MOST else highest for p in probabilities]

    def learn(self, corrected: float, depth: int, came: bool) -> None:
        """Note whether a draft that stated ``corrected`` came, its parent having come."""
        error = came - corrected
        self.common = _clip(self.common + _RATE * error)
        i = min(depth, 16)
        self.by_depth[i] = _clip(self.by_depth[i] + _DEPTH_RATE * error)


def correctable(stated: list[float]) -> list[float]:
    """``stated``, falling, with none so certain that it could not be corrected."""
    return stated if stated[0] < _MOST else [min(p, _MOST) for p in stated]


class Inheritance:
    """Where new requests start: the mean of what earlier ones of their kind ended with."""

    def __init__(self) -> None:
        self._common: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def start(self, kind: str) -> Correction:
        """A correction for a new request of ``kind`` (greedy or sampled, by source)."""
        return Correction(self._common.get(kind, 0.0))

    def end(self, kind: str, correction: Correction) -> None:
        """Learn from a finished request."""
        before, count = self._common.get(kind, 0.0), self._count.get(kind, 0) + 1
        rate = max(_INHERIT_RATE, 1.0 / (count + 1))
        self._common[kind] = before + rate * (correction.common - before)
        self._count[kind] = count


def _clip(shift: float) -> float:
    return shift if abs(shift) < _MAX_SHIFT else math.copysign(_MAX_SHIFT, shift)
