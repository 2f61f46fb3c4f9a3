"""What drafting really brought, against what was expected of it.

Expectations rest on stated survivals and on a model of the machine. Both are corrected as steps
run, yet what is left over would go into every choice with the same sign: of many sizes and drafts
those are taken that look best, so errors are picked where they flatter. So the sums of what was
expected and of what came are kept beside each other, and gains are judged by their ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_MEMORY = 0.98  # of one step's part in the sums
_TRUST = 16.0  # steps until experience counts as much as the belief that all is as expected
_OBLIVION = 0.995  # of the experience, for each step without drafts: things may have changed


@dataclass(slots=True)
class _Sums:
    """Expected and real tokens and seconds of so many steps, the latest ones most."""

    steps: float = 0.0
    expected: list[float] = field(default_factory=lambda: [0.0, 0.0])
    came: list[float] = field(default_factory=lambda: [0.0, 0.0])


class Hindsight:
    """One record for each size of the batch, in powers of two, and for each number of drafts
    where that is kept over many steps."""

    def __init__(self) -> None:
        self._records: dict[tuple[int, int], _Sums] = {}

    def factor(self, num_requests: int, kept: int = 0) -> float:
        """Real tokens/s over expected ones of steps that drafted, 1 at most.

        Args:
            num_requests: in the step.
            kept: its number of drafts; others that are kept say the less the less alike they are.
        """
        total, steps = 0.0, 0.0
        for (size, other), sums in self._records.items():
            if size == num_requests.bit_length() and sums.steps:
                (tokens, seconds), (real_tokens, real_seconds) = sums.expected, sums.came
                ratio = real_tokens / real_seconds / (tokens / seconds)
                likeness = (min(kept, other) + 1.0) / (max(kept, other) + 1.0)
                weight = sums.steps * likeness
                total, steps = total + weight * math.log(ratio), steps + weight
        return min(1.0, math.exp(total / (steps + _TRUST)))

    def learn(
        self,
        num_requests: int,
        expected: tuple[float, float],
        came: tuple[float, float],
        kept: int = 0,
    ) -> None:
        """Note the tokens and seconds of a step that drafted."""
        self._age(num_requests, kept)
        sums = self._records.setdefault((num_requests.bit_length(), kept), _Sums())
        sums.steps = _MEMORY * sums.steps + 1.0
        for known, new in ((sums.expected, expected), (sums.came, came)):
            known[0] = _MEMORY * known[0] + new[0]
            known[1] = _MEMORY * known[1] + new[1]

    def forget(self, num_requests: int) -> None:
        """Note a step without drafts: what is known of drafting grows old."""
        self._age(num_requests, -1)

    def _age(self, num_requests: int, but: int) -> None:
        """Make what was not seen in a step older, all except ``but`` drafts."""
        for (size, kept), sums in self._records.items():
            if size == num_requests.bit_length() and kept != but:
                sums.steps *= _OBLIVION
