"""Batch sizes that are kept, for devices on which a new one costs more than drafts bring.

Where a graph is compiled for each size (CUDA), going to and fro between sizes costs a good part of
a step every time. There the size is chosen by what it yields over many steps, and every step is
filled up to it. Knows survivals and seconds, as ``budget`` does.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Trust = Callable[[int], float]

WIDTH = 16  # drafts looked at, at least, when a step is to teach
_FIRST_LESSONS, _LESSONS = 3, 4  # before the first choice, and between later ones
_RATE = 0.05  # of one teaching step in the mean yields
_MARGIN = 1.05  # by which drafts must be better than none: a size is kept beyond its good stretch
_BETTER = 1.03  # by which another size must be better than the one that is kept
_INTERVAL = 16  # steps from one teaching step to the next
_MAX_DOUBLINGS = 4  # of that, one for each choice to go on without drafts
_ALIKE = 1.25  # numbers of requests whose ratio is at most this know of each other


@dataclass(frozen=True, slots=True)
class Plan:
    """``num_drafts`` of a step; with ``teaches``, more are looked at to learn what they yield.

    ``rate`` is the tokens/s that this brings in the long run.
    """

    num_drafts: int
    teaches: bool
    rate: float

    @property
    def width(self) -> int:
        """Drafts to look for."""
        return max(self.num_drafts, WIDTH) if self.teaches else self.num_drafts


@dataclass(slots=True)
class _Record:
    """Of steps with as many requests: ``tokens[k]``, mean tokens with the k likeliest drafts."""

    tokens: list[float]
    spent: float = 0.0
    lessons: int = 0
    wait: int = 0
    kept: int = 0
    gain: float = 0.0
    undecided: bool = False
    idle: int = 0  # lessons in a row with no drafts kept


class Habit:
    """What sizes yield, by the number of requests in the step.

    Args:
        change: seconds that a step costs on top when its size is not that of the step before.
        sizes: tokens of a step to choose from; requests without drafts are always possible.
    """

    def __init__(self, change: float, sizes: Sequence[int]) -> None:
        self._change = change
        self._sizes = sorted(set(sizes))
        self._max_drafts = self._sizes[-1]
        self._records: dict[int, _Record] = {}

    def plan(
        self, num_roots: int, last: int, seconds: Sequence[float], trust: Trust = lambda _: 1.0
    ) -> Plan:
        """How many drafts the next step carries.

        Args:
            num_roots: requests in the step, one token each for sure.
            last: tokens of the step before.
            seconds: t(n) for n = 0, 1, ..., no change counted in; n beyond its end is impossible.
            trust: what so many drafts really brought lately, over what was expected of them.
        """
        record = self._records.get(num_roots) or self._inherit(num_roots)
        if record is None:
            return Plan(0, True, num_roots / seconds[num_roots])
        if record.undecided:
            self._decide(record, num_roots, last, seconds, trust)
        record.wait -= 1
        count = self._counts(num_roots, min(len(seconds) - 1, num_roots + record.kept))[-1]
        return Plan(count, record.wait <= 0, _rate(record, count, num_roots, seconds))

    def _inherit(self, num_roots: int) -> _Record | None:
        """What is known of the number of requests most like ``num_roots``, if one is alike.

        With many clients nearly every step has another number of requests, and lessons cost.
        """
        ratios = {
            known: max(known, num_roots) / min(known, num_roots)
            for known, record in self._records.items()
            if record.lessons >= _FIRST_LESSONS
        }
        nearest = min(ratios, key=ratios.__getitem__, default=0)
        if not nearest or ratios[nearest] > _ALIKE:
            return None
        known, scale = self._records[nearest], num_roots / nearest
        places = range(self._max_drafts + 1)
        gains = np.interp(np.divide(places, scale), places, np.subtract(known.tokens, nearest))
        tokens = (num_roots + scale * gains).tolist()
        record = _Record(tokens, known.spent, known.lessons, known.wait, undecided=True)
        record.idle = known.idle
        self._records[num_roots] = record
        return record

    def rests(self, num_roots: int) -> bool:
        """Whether the next step carries no drafts and teaches nothing; then it needs no plan."""
        if self.drafts_within(num_roots, 1):
            return False
        self._records[num_roots].wait -= 1
        return True

    def gain(self, num_requests: int) -> float:
        """Log ratio of tokens/s that the drafts kept are expected to bring; 0 without any."""
        record = self._records.get(num_requests)
        return record.gain if record is not None and record.kept else 0.0

    def drafts_within(self, num_roots: int, steps: int) -> bool:
        """Whether one of the next ``steps`` steps may look for drafts."""
        record = self._records.get(num_roots)
        return record is None or record.undecided or record.kept > 0 or record.wait <= steps

    def _decide(
        self, record: _Record, num_roots: int, last: int, seconds: Sequence[float], trust: Trust
    ) -> None:
        """Keep the number of drafts that is best in the long run, a change to it counted in."""
        change = self._change / (_LESSONS * _INTERVAL)
        rates = {
            count: (trust(count) if count else 1.0)
            * _rate(record, count, num_roots, seconds, change * (num_roots + count != last))
            for count in self._counts(num_roots, len(seconds) - 1)
        }
        best = max(rates, key=rates.__getitem__)
        if rates[best] < _BETTER * rates.get(record.kept, 0.0):
            best = record.kept
        record.gain = math.log(rates[best] / rates[0])
        record.kept = best if rates[best] > _MARGIN * rates[0] else 0
        record.undecided = False

    def learn(self, num_roots: int, plan: Plan, survivals: Sequence[float], spent: float) -> None:
        """Note what a step that was to teach has found.

        Args:
            num_roots: as it was planned with.
            plan: what was planned.
            survivals: of its drafts, falling.
            spent: seconds that finding them took.
        """
        if not plan.teaches:
            return
        tokens = list(itertools.accumulate(survivals[: self._max_drafts], initial=float(num_roots)))
        tokens += [tokens[-1]] * (self._max_drafts + 1 - len(tokens))
        record = self._records.setdefault(num_roots, _Record(tokens, spent))
        record.lessons += 1
        rate = max(_RATE, 1.0 / record.lessons)
        record.tokens = [
            mean + rate * (new - mean) for mean, new in zip(record.tokens, tokens, strict=True)
        ]
        record.spent += rate * (spent - record.spent)
        record.idle = 0 if plan.num_drafts else record.idle + 1
        doublings = min(record.idle // _LESSONS, _MAX_DOUBLINGS)
        record.wait = min(record.lessons, _INTERVAL) << doublings
        record.undecided = record.lessons % _LESSONS == _FIRST_LESSONS

    def _counts(self, num_roots: int, most: int) -> list[int]:
        """Drafts that make a step as large as one of the sizes, rising, none at all first."""
        first, end = (bisect.bisect_right(self._sizes, n) for n in (num_roots, most))
        return [0, *(size - num_roots for size in self._sizes[first:end])]


def _rate(
    record: _Record, count: int, num_roots: int, seconds: Sequence[float], more: float = 0.0
) -> float:
    """Tokens/s of steps with ``count`` drafts that take ``more`` seconds."""
    spent = record.spent if count else 0.0
    return record.tokens[count] / (seconds[num_roots + count] + spent + more)
