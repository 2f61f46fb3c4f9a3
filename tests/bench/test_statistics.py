"""Intervals that cover what they say they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gorgon.bench.statistics import paired_ratio, percentiles, student_quantile


def test_a_constant_ratio_has_no_width() -> None:
    found = paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], ["a", "b", "c"])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.pairs == 3


def test_one_pair_says_nothing_about_others() -> None:
    found = paired_ratio([3.0], [2.0], ["a"])
    assert found.value == pytest.approx(1.5)
    assert (found.low, found.high) == (0.0, math.inf)
    assert found.holds_one
    assert str(found) == "1.500 [one group]"


def test_repeats_of_a_prompt_are_not_more_prompts() -> None:
    values, bases = [1.0, 1.2, 0.9, 1.5], [1.0] * 4
    once = paired_ratio(values, bases, list("abcd"))
    often = paired_ratio(values * 10, bases * 10, list("abcd") * 10)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_parties_are_told_equal_in_95_of_100_runs(count: int) -> None:
    rng = np.random.default_rng(3)
    runs, held = 200, 0
    for _ in range(runs):
        a, b = np.exp(rng.normal(0, 0.1, (2, count)))
        held += paired_ratio(a.tolist(), b.tolist(), list(range(count))).holds_one
    assert 0.92 <= held / runs <= 0.985


def test_student_quantiles_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for degrees, expected in table.items():
        assert student_quantile(degrees) == pytest.approx(expected, rel=2e-3)


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([]) == {}
