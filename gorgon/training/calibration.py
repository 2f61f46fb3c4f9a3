"""Stated confidence to measured survival, per head.

Knows pairs (confidence, was it right) only: no heads, no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A rising, piecewise linear map over [0, 1]; ``x`` and ``y`` are its knots."""

    x: Floats
    y: Floats

    def __call__(self, confidence: npt.ArrayLike) -> Floats:
        """Survival for each raw confidence, any shape."""
        return np.interp(np.asarray(confidence, np.float64), self.x, self.y)


def fit(confidence: Floats, right: Bools, num_bins: int = 32) -> Calibration:
    """The rising map closest to the measured frequencies.

    Args:
        confidence: raw probabilities of drafted tokens, shape [n], n > 0.
        right: whether each one was the token that came, shape [n].
        num_bins: groups of equal size before pooling.
    """
    assert len(confidence) == len(right) > 0
    order = np.argsort(confidence, kind="stable")
    groups = np.array_split(order, min(num_bins, len(order)))
    means = np.array([confidence[group].mean() for group in groups], np.float64)
    rates = np.array([right[group].mean() for group in groups], np.float64)
    weights = np.array([len(group) for group in groups], np.float64)
    levels = _rising(rates, weights)
    means, first = np.unique(np.clip(means, 1e-6, 1.0 - 1e-6), return_index=True)
    x = np.concatenate([[0.0], means, [1.0]])
    y = np.concatenate([[0.0], levels[first], [levels[-1]]])
    return Calibration(x, y)


def gaps(survival: Floats, right: Bools, min_samples: int = 200) -> list[tuple[float, float, int]]:
    """Stated and measured survival in each tenth of [0, 1] that holds enough samples.

    Returns:
        (mean stated, measured frequency, samples), tenths in order.
    """
    tenths = np.minimum((survival * 10).astype(int), 9)
    members = [np.flatnonzero(tenths == tenth) for tenth in range(10)]
    return [
        (float(survival[group].mean()), float(right[group].mean()), len(group))
        for group in members
        if len(group) >= min_samples
    ]


def _rising(values: Floats, weights: Floats) -> Floats:
    """Isotonic regression by pooling adjacent violators (Barlow et al., 1972)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            pool = _merge(pools.pop(), pool)
        pools.append(pool)
    return np.concatenate([np.full(count, value) for value, _, count in pools])


def _merge(
    left: tuple[float, float, int], right: tuple[float, float, int]
) -> tuple[float, float, int]:
    weight = left[1] + right[1]
    return (left[0] * left[1] + right[0] * right[1]) / weight, weight, left[2] + right[2]
