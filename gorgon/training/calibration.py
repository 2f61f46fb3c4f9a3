"""Stated confidence to measured survival, per head.

Knows pairs (confidence, was it right) only: no heads, no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_LEAST = 1e-5  # probabilities are kept this far from 0 and 1
_NUM_KNOTS = 61
_NEWTON_STEPS = 20
_ENOUGH = 1e-3  # nats, over all samples
_PULL = 0.1

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


def fit(confidence: Floats, right: Bools) -> Calibration:
    """The map ``sigmoid(a log p - b log(1 - p) + c)`` that makes what came likeliest.

    Three numbers bear few samples better than free steps do (measured: docs/training.md). Beta
    calibration, Kull et al., 2017.

    Args:
        confidence: raw probabilities of drafted tokens, shape [n], n > 0.
        right: whether each one was the token that came, shape [n].
    """
    assert len(confidence) == len(right) > 0
    x = np.concatenate([[0.0], _sigmoid(np.linspace(-9.0, 9.0, _NUM_KNOTS)), [1.0]])
    weights = _logistic_regression(_features(confidence), right)
    if weights[0] < 0.0:  # guesses came less often the surer they were: too few to tell more
        return Calibration(x, np.full(len(x), right.mean()))
    return Calibration(x, np.maximum.accumulate(_sigmoid(_features(x) @ weights)))


def _features(confidence: Floats) -> Floats:
    p = np.clip(confidence, _LEAST, 1.0 - _LEAST)
    return np.stack([np.log(p), -np.log1p(-p), np.ones_like(p)], axis=1)


def _logistic_regression(features: Floats, right: Bools) -> Floats:
    """Newton's method with halved steps; a weak pull towards no change makes the answer unique."""
    no_change = np.array([1.0, 1.0, 0.0])
    signs = np.where(right, -1.0, 1.0)

    def loss(weights: Floats) -> float:
        pull = 0.5 * _PULL * np.square(weights - no_change).sum()
        return float(np.logaddexp(0.0, signs * (features @ weights)).sum() + pull)

    found, least = no_change, loss(no_change)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(features @ found)
        slope = features.T @ (p - right) + _PULL * (found - no_change)
        curvature = features.T @ (features * (p * (1.0 - p))[:, None]) + _PULL * np.eye(3)
        step = np.linalg.solve(curvature, slope)
        while loss(found - step) > least:
            step *= 0.5
        found, gain = found - step, least - loss(found - step)
        least -= gain
        if gain < _ENOUGH:
            break
    return found


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values))


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
