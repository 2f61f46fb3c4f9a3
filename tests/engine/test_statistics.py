"""What a request cost: the counts agree with what came out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gorgon.request import SamplingParams, SpeculationParams
from tests.engine.driver import CHAIN, Driver, medusa, prompts, samplings, speculations
from tests.fake import FakeBackend


@given(
    jobs=st.lists(
        st.tuples(prompts(), st.integers(1, 20), speculations, samplings), min_size=1, max_size=6
    )
)
@settings(max_examples=50)
def test_drafted_and_accepted_add_up(
    jobs: list[tuple[tuple[int, ...], int, SpeculationParams, SamplingParams]],
) -> None:
    driver = Driver(FakeBackend(num_cells=1024, max_sequences=64))
    answers = [driver.submit(*job) for job in jobs]
    driver.run()
    for answer in answers:
        stats, depths = answer.sure_stats, [depth for depth in answer.depths if depth]
        assert stats.prompt_tokens == len(answer.request.prompt_ids)
        assert 0 <= stats.cached_tokens < stats.prompt_tokens
        assert stats.steps + stats.accepted == len(answer.tokens)
        assert answer.depths.count(0) == stats.steps
        assert stats.accepted == len(depths) == sum(stats.accepted_by_depth)
        assert stats.drafted == sum(stats.drafted_by_depth)
        assert len(stats.accepted_by_depth) == len(stats.drafted_by_depth)
        for i, accepted in enumerate(stats.accepted_by_depth):
            assert accepted == depths.count(i + 1)
            assert accepted <= stats.drafted_by_depth[i]
        assert 1 <= stats.max_batch <= len(jobs)


def test_depths_count_from_the_root_in_every_step() -> None:
    driver = Driver(FakeBackend(agreement=1.0))
    answer = driver.submit([1], 9, medusa(CHAIN))
    driver.run()
    assert answer.depths == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert answer.sure_stats.accepted_by_depth == (2, 2, 2)


def test_times_are_split_between_prompt_and_answer() -> None:
    driver = Driver(max_running=1)
    first, second = driver.submit([1, 2], 5), driver.submit([3, 4], 5)
    driver.run()
    for stats in (first.sure_stats, second.sure_stats):
        assert stats.prefill_time > 0
        assert stats.decode_time > 0
    assert second.sure_stats.queue_time >= first.sure_stats.prefill_time
    times = driver.engine.times
    assert times.total >= times.model >= 0
    assert times.overhead >= 0
