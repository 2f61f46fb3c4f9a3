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
    """One record for each size of the batch, in powers of two."""

    def __init__(self) -> None:
        self._records: dict[int, _Sums] = {}

    def factor(self, num_requests: int) -> float:
        """Real tokens/s over expected ones of steps that drafted, 1 at most."""
        sums = self._records.get(num_requests.bit_length())
        if sums is None or not sums.steps:
            return 1.0
        (tokens, seconds), (real_tokens, real_seconds) = sums.expected, sums.came
        ratio = real_tokens / real_seconds / (tokens / seconds)
        return min(1.0, math.exp(math.log(ratio) * sums.steps / (sums.steps + _TRUST)))

    def learn(
        self, num_requests: int, expected: tuple[float, float], came: tuple[float, float]
    ) -> None:
        """Note the tokens and seconds of a step that drafted."""
        sums = self._records.setdefault(num_requests.bit_length(), _Sums())
        sums.steps = _MEMORY * sums.steps + 1.0
        for known, new in ((sums.expected, expected), (sums.came, came)):
            known[0] = _MEMORY * known[0] + new[0]
            known[1] = _MEMORY * known[1] + new[1]

    def forget(self, num_requests: int) -> None:
        """Note a step without drafts: what is known of drafting grows old."""
        sums = self._records.get(num_requests.bit_length())
        if sums is not None:
            sums.steps *= _OBLIVION
