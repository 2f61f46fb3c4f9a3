"""Batch sizes that are kept, for devices on which a new one costs more than drafts bring.

Where a graph is compiled for each size (CUDA), going to and fro between sizes costs a good part of
a step every time. There the size is chosen by what it yields over many steps, and every step is
filled up to it. Knows survivals and seconds, as ``budget`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gorgon.speculation.budget import Choice, Floats

WORTH = 0.2  # of t(1): a change that costs less is paid whenever a step gains by it
_HORIZON = 50  # steps over which a change must pay
_RATE = 0.05  # of one step in the mean yields
_SIZES = (*range(1, 17), 20, 24, 32, 48, 64)


@dataclass(slots=True)
class _Record:
    """``tokens[k]``: mean tokens of a step that carries the k likeliest drafts."""

    tokens: Floats
    steps: int = 0


class Habit:
    """What sizes yield, by the number of requests in the step.

    Args:
        change: seconds that a step costs on top when its size is not that of the step before.
        sizes: tokens of a step to choose from; any number of requests without drafts is one, too.
        max_drafts: drafts looked at.
    """

    def __init__(
        self, change: float, sizes: Sequence[int] = _SIZES, max_drafts: int = max(_SIZES)
    ) -> None:
        self._change = change
        self._sizes = np.array(sorted(set(sizes)))
        self._max_drafts = max_drafts
        self._records: dict[int, _Record] = {}

    def learn(self, num_roots: int, survivals: Floats) -> None:
        """Note the survivals, falling, of the drafts that a step found."""
        tokens = np.full(self._max_drafts + 1, float(num_roots))
        count = min(len(survivals), self._max_drafts)
        tokens[1 : count + 1] += np.cumsum(survivals[:count])
        tokens[count + 1 :] = tokens[count]
        record = self._records.setdefault(num_roots, _Record(tokens))
        record.steps += 1
        record.tokens += max(_RATE, 1.0 / record.steps) * (tokens - record.tokens)

    def choose(self, num_roots: int, last: int, seconds: Floats, spent: float = 0.0) -> Choice:
        """The number of drafts to carry, and the tokens/s that this brings in the long run.

        Args:
            num_roots: requests in the step, one token each for sure.
            last: tokens of the step before.
            seconds: t(n) for n = 0, 1, ..., no change counted in; n beyond its end is impossible.
            spent: seconds that drafting itself takes in a step.
        """
        record = self._records.get(num_roots)
        if record is None:
            return Choice(0, num_roots / (float(seconds[num_roots]) + spent))
        counts = self._counts(num_roots, len(seconds) - 1)
        tokens = record.tokens[counts]
        times = seconds[num_roots + counts] + spent
        change = np.where(num_roots + counts == last, 0.0, self._change / _HORIZON)
        best = int((tokens / (times + change)).argmax())
        return Choice(int(counts[best]), float(tokens[best] / times[best]))

    def _counts(self, num_roots: int, most: int) -> Floats:
        """Drafts that make a step as large as one of the sizes; none is always possible."""
        sizes = self._sizes[(self._sizes > num_roots) & (self._sizes <= most)]
        counts = sizes - num_roots
        return np.concatenate([[0], counts[counts <= self._max_drafts]]).astype(np.intp)
