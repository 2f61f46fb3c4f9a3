"""Where changes of batch size are dear: steps keep their size, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gorgon.request import SamplingParams, SpeculationParams
from gorgon.speculation.cost import StepCost, StepTimes
from tests.engine.driver import Driver
from tests.fake import Failures, FakeBackend

AUTOMATIC = SpeculationParams(mode="medusa")


class SteadyCost(StepCost):
    """A machine on which a change of size costs as much as a step, whatever the clock says."""

    def __init__(self, slope: float) -> None:
        sizes = (*range(1, 17), 24, 32, 64)
        times = StepTimes((32,), sizes, np.array([[1.0 + (n - 1) * slope for n in sizes]]))
        super().__init__(times, 512, change=1.0)

    def observe(
        self, num_tokens: int, context: float, seconds: float, num_requests: int = 1
    ) -> None:
        super().observe(num_tokens, context, float(self.seconds(context)[num_tokens]))


def drive(
    slope: float,
    agreement: float,
    num_requests: int,
    searches: bool = False,
    failures: Failures | None = None,
    **settings: object,
) -> Driver:
    backend = FakeBackend(
        num_cells=2048,
        max_sequences=64,
        agreement=agreement,
        conditioned=True,
        captures_graphs=True,
        searches=searches,
        begins=True,
        failures=failures,
    )
    driver = Driver(backend, SteadyCost(slope), **settings)
    for seed in range(num_requests):
        sampling = SamplingParams(temperature=0.7, seed=seed)
        driver.submit([seed, 2, 3], 200, AUTOMATIC, sampling, ignore_eos=True)
    driver.run()
    for answer in driver.answers.values():
        driver.expect(answer)
    return driver


def decode_sizes(driver: Driver) -> list[int]:
    return driver.backend.row_counts[1:]  # the first one is the prompts'


@pytest.mark.parametrize("searches", [False, True])
@pytest.mark.parametrize("num_requests", [1, 3])
def test_good_drafts_on_a_flat_machine_make_large_steps_of_one_size(
    num_requests: int, searches: bool
) -> None:
    driver = drive(0.002, 0.9, num_requests, searches)
    sizes = decode_sizes(driver)
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    assert changes <= len(sizes) / 5
    assert np.median(sizes) > 2 * num_requests
    assert sum(a.sure_stats.accepted for a in driver.answers.values()) > 50
    driver.close()


@pytest.mark.parametrize("num_requests", [1, 3])
def test_heads_begin_with_what_the_next_step_asks(num_requests: int) -> None:
    driver = drive(0.002, 0.9, num_requests, searches=True)
    begun, asked = driver.backend.begun, driver.backend.asked
    known = {id(state) for state in begun}
    assert len(asked) > 20
    assert sum(id(state) in known for state in asked) > 0.9 * len(asked)
    assert len(begun) < 1.2 * len(asked)
    driver.close()


def test_heads_that_cannot_begin_are_asked_all_the_same() -> None:
    driver = drive(0.002, 0.9, 1, searches=True, failures=Failures(begins=frozenset(range(10))))
    assert len(driver.backend.asked) > len(driver.backend.begun) > 0
    driver.close()


def test_drafts_that_cannot_pay_are_given_up() -> None:
    driver = drive(slope=1.0, agreement=0.5, num_requests=2)
    assert np.median(decode_sizes(driver)) <= 2
    driver.close()


def test_given_sizes_are_filled_up_to() -> None:
    driver = drive(slope=0.002, agreement=0.9, num_requests=1, batch_sizes=(6, 12))
    sizes = decode_sizes(driver)
    steady = sizes[5:-15]  # the end of an answer has no room for deep chains
    assert set(steady) <= {6, 12}
    driver.close()


def test_nothing_is_parked_where_rounding_depends_on_the_batch_anyhow() -> None:
    backend = FakeBackend(num_cells=2048, max_sequences=64, conditioned=True, captures_graphs=True)
    driver = Driver(backend, SteadyCost(0.002))
    driver.submit([1, 2, 3], 100, AUTOMATIC, SamplingParams(), ignore_eos=True)
    drafted = 0
    while driver.engine.has_work:
        driver.step()
        drafted += driver.backend.row_counts[-1] > 1
        assert driver.engine.pool.num_trash_cells == 0
    assert drafted > 5
    driver.close()


def test_states_are_copied_only_while_heads_may_read_them() -> None:
    driver = drive(slope=1.0, agreement=0.05, num_requests=2)  # where no draft can pay
    for seed in (7, 8):
        driver.submit([seed, 2, 3], 200, AUTOMATIC, SamplingParams(), ignore_eos=True)
    kept = []
    while driver.engine.has_work:
        driver.step()
        kept += [s.has_states for s in driver.engine.scheduler.running]
    assert 0 < sum(kept) < len(kept) / 2
    driver.close()
