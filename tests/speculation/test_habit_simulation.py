"""Sizes that are kept, with t(n) and experience as the drafter uses them, on made-up devices.

A change of size costs less than was measured, steps with drafts cost more, one step in fifty takes
half as much again, and texts differ in how easy they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from gorgon.bench.accuracies import VICUNA_CONDITIONED, VICUNA_MEDUSA, Accuracies
from gorgon.speculation.cost import StepCost, StepTimes
from gorgon.speculation.habit import Habit
from gorgon.speculation.hindsight import Hindsight

SIZES = (*range(1, 17), 20, 24, 32, 48, 64)
MEASURED_CHANGE, CHANGE = 3.5, 1.6  # ms


@dataclass(frozen=True)
class Device:
    """Milliseconds: of a pass by its tokens (between those given, on a line), heads, drafting."""

    times: dict[int, float]
    heads: float
    drafting: float
    per_draft: float
    accuracies: Accuracies

    def at(self, n: int) -> float:
        """A step of ``n`` tokens of one request."""
        drafting = self.heads + self.drafting + self.per_draft * (n - 1) if n > 1 else 0.0
        return float(np.interp(n, list(self.times), list(self.times.values()))) + drafting

    def rate(self, n: int) -> float:
        """Tokens a millisecond when every step has ``n``."""
        return self.accuracies.expected_tokens(n) / self.at(n)


# Fitted to an H100: 7B F16, and a model of 135M whose steps are short.
LARGE = Device({1: 5.7, 2: 8.2, 16: 8.4, 17: 9.9, 64: 11.0}, 1.0, 0.3, 0.015, VICUNA_CONDITIONED)
SMALL = Device({1: 1.2, 2: 1.4, 8: 1.8, 9: 3.2, 64: 5.0}, 0.55, 0.4, 0.02, VICUNA_CONDITIONED)
STEEP = Device({1: 3.6, 4: 5.5, 8: 7.7, 64: 13.0}, 0.3, 0.1, 0.02, VICUNA_MEDUSA)


def simulate(device: Device, seed: int, slow_drafts: int = 0, steps: int = 3000) -> float:
    """Tokens/s over those without drafts; the first ``slow_drafts`` drafted steps take twice."""
    chance = random.Random(seed)
    noise = np.random.default_rng(seed).lognormal(0.0, 0.02, len(SIZES))
    times = noise * [device.at(n) - (device.heads if n > 1 else 0.0) for n in SIZES]
    cost = StepCost(StepTimes((256,), SIZES, times[None]), 64, MEASURED_CHANGE)
    habit, hindsight = Habit(MEASURED_CHANGE, SIZES), Hindsight()
    expected = [device.accuracies.expected_tokens(n) for n in range(1, 65)]
    tokens, milliseconds, last = 0, 0.0, 1
    for _ in range(steps):
        drafts, promised = 0, None
        survivals: list[float] = []
        if not habit.rests(1):
            curve = cost.curve(256, 64)
            plan = habit.plan(1, cost.last_size, curve, partial(hindsight.factor, 1))
            drafts = plan.num_drafts
            if plan.width:
                ease = chance.uniform(0.5, 1.5)
                survivals = [min(0.99, s * ease) for s in np.diff(expected)]
                habit.learn(1, plan, survivals, device.heads)
            if drafts:
                promised = 1 + sum(survivals[:drafts]), curve[1 + drafts] + device.heads
        came = 1 + sum(chance.random() < s for s in survivals[:drafts])
        took = (
            device.at(1 + drafts) * chance.gauss(1.0, 0.03) * (1.5 if chance.random() < 0.02 else 1)
        )
        took += CHANGE if 1 + drafts != last else 0.0
        if drafts and slow_drafts:
            took, slow_drafts = 2.0 * took, slow_drafts - 1
        cost.observe(1 + drafts, 256, took - (device.heads if drafts else 0.0))
        if promised is None:
            hindsight.forget(1)
        else:
            hindsight.learn(1, promised, (came, took), drafts)
        last, tokens, milliseconds = 1 + drafts, tokens + came, milliseconds + took
    return tokens / milliseconds / device.rate(1)


@pytest.mark.parametrize("device", [LARGE, STEEP])
def test_the_best_size_is_found(device: Device) -> None:
    best = max(device.rate(n) for n in SIZES) / device.rate(1)
    found = [simulate(device, seed) for seed in range(4)]
    assert float(np.mean(found)) > 0.95 * best


@pytest.mark.parametrize("device", [LARGE, STEEP])
def test_a_slow_start_does_not_end_drafting_for_good(device: Device) -> None:
    best = max(device.rate(n) for n in SIZES) / device.rate(1)
    found = [simulate(device, seed, slow_drafts=12) for seed in range(4)]
    assert float(np.mean(found)) > 1.0 + 0.5 * (best - 1.0)


def test_where_drafts_hardly_pay_little_is_lost() -> None:
    assert float(np.mean([simulate(SMALL, seed) for seed in range(4)])) > 0.95
