"""How fast the machine is now, in steps without drafts and in steps with them.

Both drift together when a machine is throttled or busy, and apart when drafting itself costs more
than was measured. Whichever kind of step has not run lately is known by the other one alone, and
less and less well: a Kalman filter keeps both and how sure they are.
"""

from __future__ import annotations

import math

_TOGETHER = 0.004**2  # variance that a step adds to both logarithms,
_APART = 0.004**2  # and to each
_SINCE = 0.1**2  # variance of the machine's speed since it was measured,
_FIRST_PLAIN, _FIRST_DRAFTED = 0.05**2, 0.15**2  # and of each: a measurement knows no drafting
_FORGET = 1 / 400  # of what drafted steps take beyond plain ones, for each plain step: one bad
# spell, when a GPU captures its first graphs or something else runs, must not end drafting for good
_MOST_MOVE = 0.1  # of a logarithm by one step, which may have been interrupted


class Speeds:
    """Logarithms of what steps take over what was measured: ``plain``, and ``drafted``."""

    def __init__(self) -> None:
        self.plain = self.drafted = 0.0
        self._covariance = _SINCE
        self._plain_variance = _SINCE + _FIRST_PLAIN
        self._drafted_variance = _SINCE + _FIRST_DRAFTED

    @property
    def doubt(self) -> float:
        """Standard deviation of the log ratio between the two."""
        variance = self._plain_variance + self._drafted_variance - 2.0 * self._covariance
        return math.sqrt(max(variance, 0.0))

    def observe(self, error: float, noise: float, *, drafted: bool) -> None:
        """Learn from a step.

        Args:
            error: what it took over what was expected, less 1.
            noise: variance of that by chance.
            drafted: whether it carried drafts.
        """
        common = self._covariance + _TOGETHER
        plain = self._plain_variance + _TOGETHER + _APART
        own = self._drafted_variance + _TOGETHER + _APART
        by_plain, by_drafted = (common, own) if drafted else (plain, common)
        total = (own if drafted else plain) + noise
        self.plain += _limited(by_plain / total * error)
        self.drafted += _limited(by_drafted / total * error)
        if not drafted:
            self.drafted += _FORGET * (self.plain - self.drafted)
        self._plain_variance = plain - by_plain * by_plain / total
        self._drafted_variance = own - by_drafted * by_drafted / total
        self._covariance = common - by_plain * by_drafted / total


def _limited(move: float) -> float:
    return max(-_MOST_MOVE, min(move, _MOST_MOVE))
