"""Sizes that are kept: chosen by what they yield over many steps."""

from __future__ import annotations

import pytest

from gorgon.speculation.habit import WIDTH, Habit, Plan

FLAT = [1.0 + 0.005 * (n - 1) for n in range(65)]  # seconds of 0 to 64 tokens
STEEP = [float(n) for n in range(65)]
LIKELY = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
NONE: list[float] = []
SIZES = (*range(1, 17), 24, 32, 64)


def teach(
    habit: Habit, survivals: list[float], lessons: int = 51, num_roots: int = 1, spent: float = 0.0
) -> Habit:
    """Give ``lessons`` in a row; after 3, 7, 11 ... of them the size is chosen anew."""
    for _ in range(lessons):
        habit.learn(num_roots, Plan(0, True, 1.0), survivals, spent)
    return habit


def test_without_experience_a_step_teaches_and_carries_nothing() -> None:
    plan = Habit(0.5, SIZES).plan(2, 2, FLAT)
    assert plan == Plan(0, True, 2 / FLAT[2])
    assert plan.width == WIDTH


def test_drafts_that_pay_are_carried_and_their_rate_is_what_comes() -> None:
    plan = teach(Habit(0.5, SIZES), LIKELY).plan(1, 8, FLAT)
    assert plan.num_drafts == 7
    assert plan.rate == pytest.approx((1 + sum(LIKELY)) / FLAT[8])


def test_drafts_that_cost_as_much_as_they_bring_are_not() -> None:
    assert teach(Habit(0.5, SIZES), LIKELY).plan(1, 1, STEEP).num_drafts == 0


def test_a_size_is_kept_where_another_is_only_a_little_better() -> None:
    for last, kept in ((7, 6), (8, 7), (2, 7)):
        assert teach(Habit(5.0, SIZES), LIKELY).plan(1, last, FLAT).num_drafts == kept


def test_one_odd_step_changes_no_habit() -> None:
    habit = teach(teach(Habit(0.5, SIZES), LIKELY), NONE, lessons=4)
    assert habit.plan(1, 8, FLAT).num_drafts == 7
    assert teach(habit, NONE, lessons=100).plan(1, 8, FLAT).num_drafts == 0


def test_numbers_of_requests_are_told_apart() -> None:
    habit = teach(teach(Habit(0.5, SIZES), LIKELY), NONE, num_roots=4)
    assert habit.plan(1, 1, FLAT).num_drafts == 7
    assert habit.plan(4, 4, FLAT).num_drafts == 0


def test_a_number_of_requests_that_is_new_knows_what_one_like_it_does() -> None:
    habit = teach(Habit(0.5, SIZES), [0.9] * 16 + [0.8] * 16, num_roots=16)
    known, new = habit.plan(16, 16, FLAT), habit.plan(15, 15, FLAT)
    assert (known.num_drafts, known.teaches) == (48, False)  # a step of 64 tokens
    assert (new.num_drafts, new.teaches) == (49, False)  # likewise
    assert new.rate == pytest.approx(15 / 16 * known.rate)
    assert habit.plan(8, 8, FLAT).teaches
    idle = teach(Habit(0.5, SIZES), NONE, num_roots=32)
    assert idle.plan(30, 30, FLAT).num_drafts == 0
    assert idle.rests(30)


def test_only_given_sizes_and_what_there_is_room_for() -> None:
    habit = teach(Habit(0.5, (4, 8, 16)), LIKELY)
    assert habit.plan(1, 1, FLAT).num_drafts in (0, 3, 7, 15)
    assert habit.plan(1, 1, FLAT[:7]).num_drafts in (0, 3)
    assert habit.plan(1, 1, FLAT[:2]).num_drafts == 0


def test_the_time_that_drafting_takes_counts() -> None:
    assert teach(Habit(0.0, SIZES), LIKELY, spent=1.0).plan(1, 8, FLAT).num_drafts == 7
    assert teach(Habit(0.0, SIZES), LIKELY, spent=5.0).plan(1, 8, FLAT).num_drafts == 0


@pytest.mark.parametrize(("survivals", "every"), [(LIKELY, 16), (NONE, 256)])
def test_lessons_become_rare(survivals: list[float], every: int) -> None:
    habit = Habit(0.5, SIZES)
    taught = []
    for step in range(3000):
        plan = habit.plan(1, 8, FLAT)
        habit.learn(1, plan, survivals, 0.1)
        taught += [step] * plan.teaches
    assert taught[:3] == [0, 1, 3]
    assert taught[-1] - taught[-2] == every


def test_steps_that_do_not_teach_change_nothing() -> None:
    habit = teach(Habit(0.5, SIZES), LIKELY)
    for _ in range(200):
        habit.learn(1, Plan(7, False, 1.0), NONE, 9.0)
    assert habit.plan(1, 8, FLAT).num_drafts == 7


def test_it_rests_between_lessons_where_nothing_is_kept() -> None:
    habit = Habit(0.5, SIZES)
    assert not habit.rests(1), "nothing is known yet"
    teach(habit, NONE, lessons=40)
    habit.plan(1, 1, FLAT)
    rests = 0
    while habit.rests(1):
        rests += 1
        assert rests < 1000
    assert rests >= 10
    assert habit.plan(1, 1, FLAT).teaches, "the lesson that was due"
    assert not teach(Habit(0.5, SIZES), LIKELY).rests(1), "drafts are kept"


def test_sizes_that_brought_less_than_expected_give_way() -> None:
    habit = teach(Habit(0.5, SIZES), LIKELY)
    assert habit.plan(1, 8, FLAT).num_drafts == 7
    teach(habit, LIKELY, lessons=4)
    assert habit.plan(1, 8, FLAT, lambda drafts: 0.8 if drafts >= 7 else 1.0).num_drafts == 6


def test_another_size_must_be_clearly_better_than_the_one_that_is_kept() -> None:
    habit = teach(Habit(0.0, SIZES), LIKELY)
    assert habit.plan(1, 8, FLAT).num_drafts == 7
    for factor, kept in ((0.94, 7), (0.85, 6)):
        teach(habit, LIKELY, lessons=4)
        trust = _Below(7, factor)
        assert habit.plan(1, 8, FLAT, trust).num_drafts == kept


class _Below:
    """Sizes from ``first`` on brought ``factor`` of what was expected."""

    def __init__(self, first: int, factor: float) -> None:
        self.first, self.factor = first, factor

    def __call__(self, drafts: int) -> float:
        return self.factor if drafts >= self.first else 1.0
