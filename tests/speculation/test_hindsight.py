"""Experience with drafts: how much of what was expected of them came."""

from __future__ import annotations

import numpy as np
import pytest

from gorgon.speculation import budget
from gorgon.speculation.hindsight import Hindsight


def test_without_experience_all_is_as_expected() -> None:
    hindsight = Hindsight()
    assert hindsight.factor(1) == 1.0
    hindsight.forget(1)
    assert hindsight.factor(1) == 1.0


def test_what_comes_short_is_found_out_through_the_noise() -> None:
    hindsight, chance = Hindsight(), np.random.default_rng(0)
    for _ in range(200):
        tokens, seconds = 1.0 + chance.binomial(3, 0.4), 1.5 * chance.lognormal(0.0, 0.1)
        hindsight.learn(1, (2.2, 1.2), (tokens, seconds))
    assert hindsight.factor(1) == pytest.approx(1.2 / 1.5, abs=0.1)
    assert hindsight.factor(8) == 1.0


def test_more_than_expected_is_no_reason_to_expect_more() -> None:
    hindsight = Hindsight()
    for _ in range(50):
        hindsight.learn(2, (3.0, 2.0), (4.0, 1.0))
    assert hindsight.factor(2) == 1.0


def test_old_experience_fades_so_that_drafts_are_tried_again() -> None:
    hindsight = Hindsight()
    for _ in range(100):
        hindsight.learn(4, (8.0, 1.0), (4.0, 1.0))
    poor = hindsight.factor(4)
    for _ in range(600):
        hindsight.forget(4)
    assert poor < 0.65
    assert hindsight.factor(4) > 0.85


def test_gains_that_do_not_reach_the_margin_are_left() -> None:
    survivals, seconds = [0.5, 0.2], [0.0, 1.0, 1.45, 2.0]
    assert budget.choose(survivals, 1, seconds).num_drafts == 1
    found = budget.choose(survivals, 1, seconds, least_gain=1.1)
    assert (found.num_drafts, found.rate) == (0, 1.0)
    assert budget.choose(survivals, 1, seconds, least_gain=1.02).num_drafts == 1


def test_what_one_kept_number_of_drafts_brought_says_something_of_others_like_it() -> None:
    hindsight = Hindsight()
    for _ in range(60):
        hindsight.learn(1, (3.0, 1.0), (2.0, 1.0), kept=15)
    factors = [hindsight.factor(1, kept) for kept in (15, 11, 7, 1)]
    assert factors == sorted(factors)
    assert factors[0] < 0.8
    assert factors[-1] > 0.9
    for _ in range(600):
        hindsight.learn(1, (2.0, 1.0), (2.0, 1.0), kept=7)
    assert hindsight.factor(1, 15) > 0.9, "it is tried again"
    assert hindsight.factor(1, 7) > 0.97
