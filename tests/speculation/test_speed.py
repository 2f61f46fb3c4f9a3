"""The machine's speed in plain and in drafted steps: what one says of the other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gorgon.speculation.cost import StepCost, StepTimes
from gorgon.speculation.speed import Speeds

NOISE = 0.1**2


def run(speeds: Speeds, steps: int, factor: float, *, drafted: bool) -> None:
    """Steps that take ``factor`` times what was measured."""
    for _ in range(steps):
        known = speeds.drafted if drafted else speeds.plain
        speeds.observe(factor / math.exp(known) - 1.0, NOISE, drafted=drafted)


@pytest.mark.parametrize("drafted", [False, True])
def test_it_follows_the_steps_that_run(drafted: bool) -> None:
    speeds = Speeds()
    run(speeds, 200, 1.5, drafted=drafted)
    assert math.exp(speeds.drafted if drafted else speeds.plain) == pytest.approx(1.5, rel=0.01)


def test_drafting_that_is_dearer_than_measured_does_not_make_plain_steps_look_dear() -> None:
    speeds = Speeds()
    run(speeds, 20, 1.0, drafted=False)
    run(speeds, 300, 1.4, drafted=True)
    assert math.exp(speeds.drafted) == pytest.approx(1.4, rel=0.01)
    assert math.exp(speeds.plain) == pytest.approx(1.0, rel=0.05)


def test_a_machine_that_slows_down_slows_steps_of_both_kinds() -> None:
    speeds = Speeds()
    for _ in range(50):
        run(speeds, 1, 1.0, drafted=False)
        run(speeds, 1, 1.2, drafted=True)
    run(speeds, 100, 1.5, drafted=False)
    assert 1.3 < math.exp(speeds.drafted) < 1.9


def test_what_was_not_seen_lately_is_in_doubt_until_it_is_seen() -> None:
    speeds = Speeds()
    run(speeds, 50, 1.0, drafted=False)
    run(speeds, 50, 1.0, drafted=True)
    soon = speeds.doubt
    run(speeds, 300, 1.0, drafted=True)
    late = speeds.doubt
    run(speeds, 10, 1.0, drafted=False)
    assert late > 1.5 * soon
    assert speeds.doubt < 0.6 * late


def test_a_bad_spell_of_drafted_steps_is_forgotten_while_nobody_drafts() -> None:
    speeds = Speeds()
    run(speeds, 50, 1.0, drafted=False)
    run(speeds, 10, 2.0, drafted=True)
    assert math.exp(speeds.drafted) > 1.5
    run(speeds, 100, 1.0, drafted=False)
    assert math.exp(speeds.drafted) > 1.3, "not at once"
    run(speeds, 900, 1.0, drafted=False)
    assert math.exp(speeds.drafted) < 1.1


def test_one_step_moves_it_little() -> None:
    speeds = Speeds()
    speeds.observe(50.0, NOISE, drafted=False)
    assert max(speeds.plain, speeds.drafted) <= 0.1


def test_changes_of_size_that_were_measured_too_dear_move_nothing() -> None:
    """Their errors have one sign, and used to go more into sizes than into the whole machine."""
    cost = StepCost(StepTimes((32,), (1, 64), np.array([[10.0, 73.0]])), 64, change=9.0)
    for i in range(1500):
        if i % 10 == 0:
            cost.interrupt()
        size, change = 6 + i // 50 % 2, 2.0 if i % 10 == 0 else 0.0
        cost.observe(size, 32, 9.0 + size + change)
    curve = cost.curve(32, 8)
    assert curve[6:8] == pytest.approx([15.0, 16.0], rel=0.03)
    assert curve[1] == pytest.approx(10.0, rel=0.06)
