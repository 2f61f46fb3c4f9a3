"""Sizes that are kept: chosen by what they yield over many steps."""

from __future__ import annotations

import numpy as np
import pytest

from gorgon.speculation.budget import Floats
from gorgon.speculation.habit import Habit

FLAT: Floats = np.array([0.0, *np.linspace(1.0, 1.3, 64)])  # seconds of 0 to 64 tokens
STEEP: Floats = np.arange(65, dtype=np.float64)
LIKELY: Floats = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])


def learnt(habit: Habit, survivals: Floats, steps: int = 100, num_roots: int = 1) -> Habit:
    for _ in range(steps):
        habit.learn(num_roots, survivals)
    return habit


def test_without_experience_no_drafts() -> None:
    assert Habit(0.5).choose(2, 2, FLAT).num_drafts == 0


def test_drafts_that_pay_are_carried_and_their_rate_is_what_comes() -> None:
    choice = learnt(Habit(0.5), LIKELY).choose(1, 8, FLAT)
    assert choice.num_drafts == 7
    assert choice.rate == pytest.approx((1 + LIKELY.sum()) / FLAT[8])


def test_drafts_that_cost_as_much_as_they_bring_are_not() -> None:
    assert learnt(Habit(0.5), LIKELY).choose(1, 1, STEEP).num_drafts == 0


def test_a_size_is_kept_where_another_is_only_a_little_better() -> None:
    habit = learnt(Habit(10.0), LIKELY)
    for last in (7, 8):
        assert habit.choose(1, last, FLAT).num_drafts == last - 1
    assert habit.choose(1, 2, FLAT).num_drafts > 4


def test_one_odd_step_changes_no_habit() -> None:
    habit = learnt(Habit(0.5), LIKELY)
    habit.learn(1, np.array([]))
    assert habit.choose(1, 8, FLAT).num_drafts == 7
    learnt(habit, np.array([]), steps=200)
    assert habit.choose(1, 8, FLAT).num_drafts == 0


def test_numbers_of_requests_are_told_apart() -> None:
    habit = learnt(Habit(0.5), LIKELY)
    learnt(habit, np.array([]), num_roots=4)
    assert habit.choose(1, 1, FLAT).num_drafts == 7
    assert habit.choose(4, 4, FLAT).num_drafts == 0


def test_only_given_sizes_and_what_there_is_room_for() -> None:
    habit = learnt(Habit(0.5, sizes=(4, 8, 16)), LIKELY)
    assert habit.choose(1, 1, FLAT).num_drafts in (0, 3, 7, 15)
    assert habit.choose(1, 1, FLAT[:7]).num_drafts in (0, 3)
    assert habit.choose(1, 1, FLAT[:2]).num_drafts == 0


def test_drafting_itself_counts() -> None:
    habit = learnt(Habit(0.5), np.array([0.2]))
    assert habit.choose(1, 2, FLAT, spent=0.0).num_drafts == 1
    assert habit.choose(1, 2, FLAT, spent=0.0).rate > habit.choose(1, 2, FLAT, spent=0.5).rate
