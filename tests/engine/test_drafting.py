"""How trees are filled: conditioned heads go down level by level, over all requests at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorgon.backend import DraftState, Guesses
from gorgon.request import SamplingParams, SpeculationParams, TreePaths
from gorgon.speculation.cost import StepCost, StepTimes
from tests.engine.driver import (
    BUSH,
    CHAIN,
    Driver,
    flat_cost,
    medusa,
    prompts,
    samplings,
    tree_paths,
)
from tests.fake import Failures, FakeBackend


def conditioned(**params: object) -> FakeBackend:
    return FakeBackend(conditioned=True, **params)  # type: ignore[arg-type]


@given(
    requests=st.lists(st.tuples(prompts(), tree_paths(), samplings), min_size=1, max_size=5),
    window=st.integers(0, 3),
    agreement=st.floats(0, 1),
)
@settings(max_examples=60)
def test_conditioned_heads_do_not_change_the_text(
    requests: list[tuple[tuple[int, ...], TreePaths, SamplingParams]],
    window: int,
    agreement: float,
) -> None:
    driver = Driver(conditioned(num_cells=600, window=window, agreement=agreement))
    answers = [driver.submit(p, 20, medusa(tree), sampling) for p, tree, sampling in requests]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    driver.close()


@pytest.mark.parametrize("window", [0, 2])
def test_conditioned_heads_that_are_right_fill_every_step(window: int) -> None:
    driver = Driver(conditioned(window=window, agreement=1.0))
    answers = [driver.submit((1, 2, i), 21, medusa(CHAIN)) for i in range(3)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
        # One plain step, then three drafts and the draw behind them each time.
        assert answer.depths[:9] == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_a_level_is_one_call_for_all_requests_and_nodes() -> None:
    driver = Driver(conditioned())
    for i in range(3):
        driver.submit((5, i), 30, medusa(BUSH))
    driver.submit((6,), 30, medusa(((0,), (1,))))
    driver.step(3)
    counts = driver.backend.failures.counts
    assert counts["proposes"] == counts["deepens"] == 2


def test_a_level_that_fails_costs_drafts_only() -> None:
    failures = Failures(deepens=frozenset([1]))
    driver = Driver(conditioned(agreement=1.0, failures=failures))
    answer = driver.submit((1, 2, 3), 12, medusa(CHAIN))
    driver.run()
    driver.expect(answer)
    assert answer.depths == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("captures_graphs", [False, True])
def test_many_fixed_trees_leave_a_choice_to_others(captures_graphs: bool) -> None:
    backend = conditioned(
        agreement=1.0, num_cells=2000, max_sequences=128, captures_graphs=captures_graphs
    )
    driver = Driver(backend, flat_cost())
    for i in range(12):
        driver.submit((1, 2, i), 40, medusa(BUSH), ignore_eos=True)
    free = driver.submit((1, 2, 3), 40, SpeculationParams(mode="medusa"), ignore_eos=True)
    driver.run()
    driver.expect(free)
    assert free.sure_stats.accepted > 10


@given(
    prompts_=st.lists(prompts(), min_size=1, max_size=4),
    sampling=samplings,
    window=st.integers(0, 2),
    agreement=st.floats(0, 1),
)
@settings(max_examples=40)
def test_a_search_does_not_change_the_text(
    prompts_: list[tuple[int, ...]], sampling: SamplingParams, window: int, agreement: float
) -> None:
    backend = conditioned(num_cells=600, window=window, agreement=agreement, searches=True)
    driver = Driver(backend, flat_cost())
    answers = [driver.submit(p, 20, SpeculationParams(mode="medusa"), sampling) for p in prompts_]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    driver.close()


def test_a_search_is_one_draft_of_all_depths() -> None:
    driver = Driver(conditioned(agreement=1.0, searches=True, num_cells=600), flat_cost())
    answer = driver.submit((1, 2, 3), 61, SpeculationParams(mode="medusa"), ignore_eos=True)
    driver.run()
    driver.expect(answer)
    assert max(answer.depths) == driver.backend.num_heads
    assert answer.sure_stats.steps <= 15


def test_a_search_that_fails_costs_drafts_only() -> None:
    failures = Failures(proposes=frozenset([1]))
    backend = conditioned(agreement=1.0, searches=True, num_cells=600, failures=failures)
    driver = Driver(backend, flat_cost())
    answer = driver.submit((1, 2, 3), 30, SpeculationParams(mode="medusa"), ignore_eos=True)
    driver.run()
    driver.expect(answer)
    assert answer.depths[:8] == [0, 1, 2, 3, 4, 0, 0, 1]  # the seventh: heads that failed


class GivenCost(StepCost):
    """A t(n) that no step changes."""

    def observe(
        self, num_tokens: int, context: float, seconds: float, num_requests: int = 1
    ) -> None:
        pass


def test_heads_that_are_useless_rest_and_are_asked_again() -> None:
    asked = 0
    backend = conditioned(agreement=0.0, window=2, num_cells=2000)
    half_a_step_per_token = StepTimes((32,), (1, 65), np.array([[1.0, 33.0]]))
    driver = Driver(backend, GivenCost(half_a_step_per_token, 512))
    propose = backend.propose

    def counted(state: DraftState) -> Guesses:
        nonlocal asked
        asked += 1
        return propose(state)

    backend.propose = counted  # type: ignore[method-assign]
    driver.submit((1, 2, 3), 900, SpeculationParams(mode="medusa"), ignore_eos=True)
    driver.step(300)
    asked = 0
    driver.step(300)
    assert 3 <= asked <= 60
