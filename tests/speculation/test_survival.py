"""Corrections follow the truth within some tens of tokens and stay there."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gorgon.speculation.survival import Correction, Inheritance


def feed(correction: Correction, stated: float, truth: float, count: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        correction.learn(correction.apply(stated, 1), 1, chance.random() < truth)


@pytest.mark.parametrize(("stated", "truth"), [(0.9, 0.3), (0.3, 0.9), (0.6, 0.6), (0.5, 0.05)])
def test_a_wrong_statement_is_corrected_within_some_tens(stated: float, truth: float) -> None:
    finals = []
    for seed in range(40):
        correction = Correction()
        feed(correction, stated, truth, 60, seed)
        finals.append(correction.apply(stated, 1))
    assert float(np.mean(finals)) == pytest.approx(truth, abs=0.12)


def test_it_does_not_swing() -> None:
    correction = Correction()
    feed(correction, 0.8, 0.5, 200)
    values = []
    for seed in range(100):
        feed(correction, 0.8, 0.5, 5, seed + 1)
        values.append(correction.apply(0.8, 1))
    assert float(np.std(values)) < 0.12
    assert float(np.mean(values)) == pytest.approx(0.5, abs=0.08)


def test_certain_statements_can_still_be_corrected() -> None:
    correction = Correction()
    feed(correction, 1.0, 0.2, 300)
    assert correction.apply(1.0, 1) < 0.9


def test_new_requests_start_where_others_of_their_kind_ended() -> None:
    inheritance = Inheritance()
    for _ in range(20):
        ended = inheritance.start("greedy")
        ended.common = -2.0
        inheritance.end("greedy", ended)
    assert inheritance.start("greedy").common == pytest.approx(-2.0, abs=0.2)
    assert inheritance.start("sampled").common == 0.0


def test_shifts_of_all_depths_are_those_of_each() -> None:
    correction = Correction()
    for depth in (1, 1, 2, 16):
        correction.learn(0.3, depth, True)
    assert correction.shifts(16) == [correction.shift(depth) for depth in range(1, 17)]
