"""t(n): smoothing of measurements, interpolation, and following what steps really take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.speculation.cost import CallCost, OutsideCost, StepCost, StepTimes, smooth


def line(slope: float = 1.0, contexts: tuple[int, ...] = (0, 1000)) -> StepTimes:
    """10 + slope (n - 1) at an empty context, twice that at 1,000 cells."""
    sizes = (1, 2, 3, 4, 8)
    base = np.array([10.0 + slope * (n - 1) for n in sizes])
    return StepTimes(contexts, sizes, np.stack([base * (1 + c / 1000) for c in contexts]))


def test_sizes_between_and_beyond_the_measured_ones_lie_on_its_lines() -> None:
    curve = StepCost(line(), 32).seconds(0)
    assert curve[0] == 0
    assert curve[1:] == pytest.approx([10.0 + n - 1 for n in range(1, 33)])


@pytest.mark.parametrize(("context", "factor"), [(0, 1), (500, 1.5), (1000, 2), (2000, 3)])
def test_contexts_are_interpolated_and_continued(context: int, factor: float) -> None:
    assert StepCost(line(), 4).seconds(context)[1] == pytest.approx(10 * factor)


class Watched(StepCost):
    """Another thread asks for ``seconds`` in the middle of everything."""

    def _more_for(self, num_requests: int) -> float:
        self.seconds(1000)
        return super()._more_for(num_requests)


def test_what_others_ask_for_meanwhile_changes_nothing() -> None:
    alone, watched = StepCost(line(), 16), Watched(line(), 16)
    for _ in range(5):
        for size, requests in ((1, 1), (4, 4), (6, 4)):
            for cost in (alone, watched):
                cost.observe(size, 0, 15.0, requests)
    for requests in (1, 4):
        assert watched.curve(0, 16, requests) == alone.curve(0, 16, requests)
    assert list(alone.seconds(0)) == pytest.approx(alone.curve(0, 16))


def test_a_machine_that_slows_down_moves_the_whole_curve() -> None:
    cost = StepCost(line(), 16)
    for _ in range(200):
        cost.observe(1, 0, 15.0)
    assert cost.seconds(0)[1] == pytest.approx(15.0, rel=0.02)
    assert cost.seconds(0)[8] > 1.2 * line().seconds[0][4]


def test_a_size_that_is_dearer_than_measured_stands_out() -> None:
    cost = StepCost(line(), 16)
    for _ in range(300):
        for size, seconds in ((1, 10.0), (4, 26.0), (5, float(line().seconds[0][4]))):
            cost.observe(size, 0, seconds)
    ratios = cost.seconds(0) / cost.seconds(0)[1]
    assert ratios[4] == pytest.approx(2.6, rel=0.1)
    assert ratios[5] < 2.0


def test_a_size_that_was_never_tried_is_as_dear_as_its_neighbours() -> None:
    cost = StepCost(line(), 16)
    measured = cost.seconds(0)
    for _ in range(100):
        cost.observe(8, 0, 1.5 * measured[8])
        cost.observe(2, 0, measured[2])
    assert cost.seconds(0)[9] > 1.2 * measured[9]
    assert cost.seconds(0)[8] / cost.seconds(0)[2] == pytest.approx(
        1.5 * measured[8] / measured[2], rel=0.1
    )


def test_one_interrupted_step_changes_little() -> None:
    cost = StepCost(line(), 16)
    cost.observe(1, 0, 5000.0)
    assert cost.seconds(0)[1] < 11.2
    known = StepCost(line(), 16)
    for _ in range(20):
        known.observe(1, 0, 10.0)
    known.observe(1, 0, 5000.0)
    assert known.seconds(0)[1] < 10.7


def test_a_good_part_of_a_change_of_size_is_counted_in() -> None:
    cost = StepCost(line(), 16, change=4.0)
    cost.observe(4, 0, 17.0)
    curve = cost.next_curve(0, 16)
    assert curve[4] == pytest.approx(13.0, rel=0.01)
    assert 14.0 <= curve[3] < 16.0


def test_after_something_else_every_size_is_a_change() -> None:
    cost = StepCost(line(), 16, change=4.0)
    cost.observe(4, 0, 17.0)
    cost.interrupt()
    curve = cost.next_curve(0, 16)
    assert curve[4] - curve[3] == pytest.approx(1.0, rel=0.01)
    cost.observe(4, 0, 17.0)
    assert cost.seconds(0)[4] == pytest.approx(13.0, rel=0.01)


def test_what_each_further_request_costs_is_not_taken_for_a_price_of_tokens() -> None:
    """Steps of one request stay as they are, and the slope at four is that at one."""
    cost = StepCost(line(), 16)
    for _ in range(300):
        cost.observe(4, 0, 13.0 + 3 * 2.0, num_requests=4)
        cost.observe(1, 0, 10.0)
    assert cost.curve(0, 8, num_requests=4)[4] == pytest.approx(19.0, rel=0.02)
    assert cost.curve(0, 8)[1] == pytest.approx(10.0, rel=0.02)
    curve = cost.curve(0, 8, num_requests=4)
    assert curve[8] - curve[4] == pytest.approx(4.0, rel=0.4)


def test_noise_does_not_make_more_tokens_cheaper_but_a_real_dip_stays() -> None:
    noisy = smooth([[10.0, 10.2, 9.8], [12.4, 12.0, 12.2], [12.1, 11.9, 12.3], [13.0, 13.1, 12.9]])
    assert list(noisy) == sorted(noisy)
    dip = smooth([[10.0, 10.1, 9.9], [19.0, 19.1, 18.9], [15.0, 15.1, 14.9]])
    assert dip == pytest.approx([9.95, 18.95, 14.95])


def test_a_size_that_was_interrupted_each_time_does_not_look_dear_for_good() -> None:
    smoothed = smooth([[10.0] * 3, [190.0] * 3, [52.0] * 3, [12.0] * 3])
    assert smoothed == pytest.approx([10.0, 15.6, 15.6, 12.0])


@given(st.lists(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=5), min_size=1, max_size=20))
def test_smoothing_keeps_the_number_and_the_range(samples: list[list[float]]) -> None:
    levels = [float(np.percentile(times, 25)) for times in samples]
    smoothed = smooth(samples)
    assert len(smoothed) == len(samples)
    assert smoothed.min() >= min(levels) - 1e-12
    assert smoothed.max() <= max(levels) + 1e-12


def test_a_call_follows_what_calls_take() -> None:
    cost = CallCost(1.0, 0.5)
    for _ in range(200):
        cost.observe(2, 4.0)
    assert cost.at(2) == pytest.approx(4.0, rel=0.02)
    assert cost.at(4) == pytest.approx(6.0, rel=0.02)


def test_what_steps_take_outside_is_learnt_from_any_step() -> None:
    fast, slow = OutsideCost(), OutsideCost()
    before = fast.drafting(32, 32)
    for _ in range(200):
        slow.observe(0, 1, 3 * 75e-6)  # one request, no drafts: three times what is believed
    assert slow.drafting(32, 32) == pytest.approx(3 * before, rel=0.05)
    assert slow.drafting(0, 32) == 0.0
    assert slow.drafting(8, 1) < slow.drafting(8, 4) < slow.drafting(20, 4)
    slow.observe(8, 4, 1.0)  # one that was interrupted
    assert slow.drafting(32, 32) < 3.5 * before
