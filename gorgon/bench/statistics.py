"""Ratios of paired measurements with bootstrap intervals, and percentiles. Pure NumPy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 10_000
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; ``pairs`` is what it was resampled from."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def holds_one(self) -> bool:
        """Whether "no difference" is inside."""
        return self.low <= 1.0 <= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.value:.3f} [one group]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(
    values: Sequence[float], bases: Sequence[float], keys: Sequence[Hashable], seed: int = 0
) -> Interval:
    """The geometric mean of ``values / bases``, pair by pair, with a 95 % interval.

    Pairs with the same key (repeats of the same prompts) are averaged first, so that repeating a
    prompt adds precision but no prompts; the keys are then resampled with replacement. The
    percentiles taken are those of the expanded percentile interval (Hesterberg, "What Teachers
    Should Know About the Bootstrap", 2015, section 4.2), without which few keys give intervals
    that are too narrow. A resampled mean never leaves the range of the means, so three keys would
    still be all on one side of an equal party's 1 in a quarter of all runs: the interval is
    never narrower than Student's for the mean of the logs. One key has no interval: (0, inf).
    """
    assert len(values) == len(bases) == len(keys) > 0
    logs: dict[Hashable, list[float]] = {}
    for value, base, key in zip(values, bases, keys, strict=True):
        logs.setdefault(key, []).append(math.log(value / base))
    means = np.array([np.mean(found) for found in logs.values()])
    if len(means) < 2:
        return Interval(math.exp(means[0]), 0.0, math.inf, 1)
    low, high = np.quantile(_resampled_means(means, seed), expanded_percentiles(len(means)))
    middle, half = float(means.mean()), _student_half_width(means)
    low, high = min(float(low), middle - half), max(float(high), middle + half)
    return Interval(math.exp(middle), math.exp(low), math.exp(high), len(means))


def _student_half_width(values: Floats) -> float:
    count = len(values)
    return student_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)


def _resampled_means(values: Floats, seed: int) -> Floats:
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means: Floats = values[picks].mean(axis=1)
    return means


def expanded_percentiles(count: int) -> tuple[float, float]:
    """The two fractions to take of bootstrapped means of ``count`` values for 95 %.

    ``Phi(-sqrt(n / (n - 1)) * t)`` with Student's quantile of n - 1 degrees of freedom.
    """
    t = student_quantile(count - 1)
    low = NormalDist().cdf(-math.sqrt(count / (count - 1)) * t)
    return low, 1.0 - low


def student_quantile(degrees: int) -> float:
    """Student's t at 97.5 %: exact for 1 and 2 degrees, else Hill's expansion (1970), to 0.1 %."""
    if degrees == 1:
        return 12.706204736
    if degrees == 2:
        return 4.302652730
    z, n = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), float(degrees)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / n**power for power, term in enumerate(terms))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99; empty when there are no values."""
    if not len(values):
        return {}
    found = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def format_percentiles(found: Mapping[str, float], scale: float = 1e3, digits: int = 1) -> str:
    """``p50 / p90 / p99``, milliseconds of seconds by default; a dash when there are none."""
    if not found:
        return "-"
    return " / ".join(f"{found[f'p{p}'] * scale:.{digits}f}" for p in PERCENTILES)
