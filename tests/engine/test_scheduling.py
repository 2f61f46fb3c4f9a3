"""Who runs when: admission, chunks of prompts, refusals, cancels, failures."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorgon.errors import DecodeError, HeadsError, QueueFullError, RequestError
from gorgon.request import FinishReason, Request, SamplingParams, SpeculationParams
from tests.engine.driver import BUSH, PLAIN, Driver, medusa, prompts, samplings, speculations
from tests.fake import Failures, FakeBackend, ToyModel

LONG = tuple(i % 32 for i in range(100))


def test_requests_are_admitted_in_order_of_arrival() -> None:
    driver = Driver(max_running=2)
    answers = [driver.submit([i], 4) for i in range(6)]
    ends: list[str] = []
    while driver.engine.has_work:
        ends += [result.request_id for result in driver.step() if result.finish]
    assert ends == [answer.request.id for answer in answers]


def test_a_small_request_does_not_overtake_a_large_one_that_waits_for_cells() -> None:
    driver = Driver(FakeBackend(num_cells=128))
    driver.submit([1], 100)
    large, small = driver.submit([2], 110), driver.submit([3], 2)
    while not large.is_over:
        driver.step()
        assert not small.is_over or large.tokens
    driver.run()
    driver.expect(large)
    driver.expect(small)


def test_a_request_joins_the_step_after_it_was_submitted() -> None:
    driver = Driver()
    first = driver.submit([1], 20)
    driver.step(3)
    second = driver.submit([2], 20)
    driver.step()
    assert (len(first.tokens), len(second.tokens)) == (4, 1)
    driver.run()
    assert first.sure_stats.max_batch == second.sure_stats.max_batch == 2


def test_streams_flow_while_a_long_prompt_is_read_in_chunks() -> None:
    driver = Driver(prefill_chunk=8, prefill_batch=32)
    stream = driver.submit([1], 60)
    driver.step(2)
    newcomer = driver.submit(LONG, 4)
    while not newcomer.tokens:
        before, calls = len(stream.tokens), len(driver.backend.row_counts)
        driver.step()
        assert len(stream.tokens) == before + 1
        assert driver.backend.row_counts[calls] <= 8
    driver.run()
    driver.expect(stream)
    driver.expect(newcomer)


def test_prompts_are_read_in_large_chunks_while_nobody_decodes() -> None:
    driver = Driver(prefill_chunk=8, prefill_batch=32)
    driver.submit(LONG, 1)
    driver.run()
    assert driver.backend.row_counts == [32, 32, 32, 3, 1]


def test_the_chunk_is_shared_by_all_prompts() -> None:
    driver = Driver(prefill_chunk=8, prefill_batch=8)
    answers = [driver.submit(LONG[i:40], 3) for i in range(4)]
    driver.run()
    assert max(driver.backend.row_counts) == 8
    for answer in answers:
        driver.expect(answer)


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    driver = Driver()
    answer = driver.submit([7], 3)
    driver.run()
    driver.expect(answer)
    assert driver.backend.row_counts == [1, 1, 1]


def test_no_more_than_max_running_run() -> None:
    driver = Driver(max_running=3)
    answers = [driver.submit([i], 5) for i in range(10)]
    while driver.engine.has_work:
        driver.step()
        assert len(driver.engine.scheduler.running) <= 3
    assert all(answer.sure_stats.max_batch <= 3 for answer in answers)


# -- refusals -------------------------------------------------------------------------------------


def test_a_full_queue_refuses() -> None:
    driver = Driver(max_running=1, max_waiting=2)
    driver.submit([1], 4)
    driver.step()
    driver.submit([2], 4)
    driver.submit([3], 4)
    with pytest.raises(QueueFullError, match="2 requests are waiting") as refusal:
        driver.submit([4], 4)
    assert refusal.value.status == 429
    assert refusal.value.retry_after > 0
    driver.run()
    late = driver.submit([4], 4)
    driver.run()
    driver.expect(late)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field", "words"),
    [
        (LONG, 1, "prompt", "prompt has 100 tokens, the context holds 63; shorten it"),
        (LONG[:40], 50, "max_length", "max_length can be at most 23"),
        (LONG[:1], 10**9, "max_length", "max_length can be at most 62"),
        ((1, 99), 4, "prompt", "token ids must be 0 to 31"),
        ((1, -1), 4, "prompt", "token ids must be 0 to 31"),
    ],
)
def test_what_can_never_be_served_is_refused_with_its_field(
    prompt: tuple[int, ...], max_tokens: int, field: str, words: str
) -> None:
    driver = Driver(FakeBackend(num_cells=64))
    with pytest.raises(RequestError, match=words) as refusal:
        driver.submit(prompt, max_tokens)
    assert refusal.value.field == field
    assert refusal.value.status == 400
    assert not driver.engine.has_work


def test_the_context_of_the_model_limits_too() -> None:
    driver = Driver(FakeBackend(max_position=50))
    with pytest.raises(RequestError, match="exceed the context of 50"):
        driver.submit([1], 50)
    answer = driver.submit([1], 49, medusa(BUSH))
    driver.run()
    driver.expect(answer)


def test_the_largest_request_that_is_accepted_ends_well() -> None:
    driver = Driver(FakeBackend(num_cells=64, agreement=0.8))
    for prompt, max_tokens in ((LONG[:56], 1), (LONG[:1], 56), (LONG[:28], 29)):
        answer = driver.submit(prompt, max_tokens, medusa(BUSH))
        driver.run()
        driver.expect(answer)
    driver.close()


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"prompt_ids": ()}, "prompt"),
        ({"max_tokens": 0}, "max_length"),
        ({"max_tokens": -5}, "max_length"),
    ],
)
def test_a_request_that_makes_no_sense_cannot_be_made(params: dict[str, int], field: str) -> None:
    whole = {"id": "r", "prompt_ids": (1,), "max_tokens": 1} | params
    with pytest.raises(RequestError) as refusal:
        Request(**whole)  # type: ignore[arg-type]
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "name", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"]
)
def test_sampling_out_of_range_names_the_field(name: str) -> None:
    with pytest.raises(RequestError, match=name) as refusal:
        SamplingParams(**{name: -1})  # type: ignore[arg-type]
    assert refusal.value.field == name


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0)), "heads look 4 tokens ahead"),
        (((4,),), "heads give 0 to 3"),
        (((0, 0),), "lacks its parent"),
    ],
)
def test_a_tree_that_the_heads_cannot_fill_is_refused(
    paths: tuple[tuple[int, ...], ...], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        Driver().submit([1], 4, medusa(paths))
    assert refusal.value.field == "tree"


def test_without_heads_medusa_mode_drafts_by_lookup_alone() -> None:
    driver = Driver(FakeBackend(ToyModel(num_vocab=4), num_heads=0, max_guesses=0))
    answer = driver.submit([1, 2, 3] * 6, 40, SpeculationParams())
    driver.run()
    driver.expect(answer)
    assert set(answer.sure_stats.drafted_by_source) == {"lookup"}


# -- cancels --------------------------------------------------------------------------------------


def test_a_cancelled_request_frees_its_cells_at_once() -> None:
    driver = Driver(cached_cells=0)
    stay, leave = driver.submit([1], 30, medusa()), driver.submit(LONG, 30, medusa())
    driver.step(3)
    driver.cancel(leave)
    assert driver.engine.pool.cells.num_used <= driver.running(stay).num_computed + 512
    driver.run()
    driver.expect(stay)
    driver.close()


def test_cancelling_waiting_unknown_and_finished_requests_is_harmless() -> None:
    driver = Driver(max_running=1)
    first, waiting = driver.submit([1], 3), driver.submit([2], 3)
    driver.step()
    driver.cancel(waiting)
    driver.engine.cancel("nobody")
    driver.run()
    driver.cancel(first)
    driver.expect(first)
    assert waiting.tokens == []
    driver.close()


def test_cancel_tells_what_a_running_request_cost() -> None:
    driver = Driver()
    answer = driver.submit([1, 2, 3], 30)
    driver.step(4)
    answer.cancelled = True
    stats = driver.engine.cancel(answer.request.id)
    assert stats is not None
    assert (stats.prompt_tokens, stats.steps) == (3, 4)


@given(
    jobs=st.lists(
        st.tuples(prompts(), st.integers(1, 20), speculations, samplings), min_size=1, max_size=8
    ),
    cancels=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 7)), max_size=8),
    chunk=st.integers(1, 16),
)
@settings(max_examples=60)
def test_cancels_at_any_step_leave_the_others_alone(
    jobs: list[tuple[tuple[int, ...], int, SpeculationParams, SamplingParams]],
    cancels: list[tuple[int, int]],
    chunk: int,
) -> None:
    driver = Driver(
        FakeBackend(num_cells=200), max_running=4, prefill_chunk=chunk, prefill_batch=chunk
    )
    answers = [driver.submit(*job) for job in jobs]
    for step in itertools.count():
        for _, who in (cancel for cancel in cancels if cancel[0] == step):
            driver.cancel(answers[who % len(answers)])
        if not driver.engine.has_work:
            break
        driver.step()
    for answer in answers:
        assert answer.is_over
        if answer.request.speculation.acceptance == "lossless":
            whole = driver.backend.model.generate(answer.request)
            assert answer.tokens == whole[: len(answer.tokens)]
            assert answer.cancelled or answer.tokens == whole
    driver.close()


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave_cells", [False, True])
def test_a_failed_batch_fails_its_requests_and_nobody_else(leave_cells: bool) -> None:
    failures = Failures(decodes=frozenset([3]), leave_cells=leave_cells)
    driver = Driver(FakeBackend(failures=failures), max_running=2)
    answers = [driver.submit([i, 2], 8, medusa()) for i in range(4)]
    driver.run()
    for answer in answers[:2]:
        assert answer.finish is FinishReason.ERROR
        assert isinstance(answer.error, DecodeError)
        assert answer.tokens == driver.backend.model.generate(answer.request)[: len(answer.tokens)]
        assert answer.sure_stats.steps == 3
    for answer in answers[2:]:
        driver.expect(answer)
    driver.close()


@pytest.mark.parametrize("leave_cells", [False, True])
def test_a_failed_prompt_chunk_fails_its_requests_only(leave_cells: bool) -> None:
    failures = Failures(prefills=frozenset([1]), leave_cells=leave_cells)
    driver = Driver(FakeBackend(failures=failures), prefill_chunk=8, prefill_batch=8)
    stream = driver.submit([1], 20, medusa())
    driver.step(2)
    victim = driver.submit(LONG, 4)
    driver.run()
    assert victim.finish is FinishReason.ERROR
    driver.expect(stream)
    driver.close()


def test_failing_heads_cost_drafts_and_no_answer() -> None:
    driver = Driver(FakeBackend(agreement=1.0, failures=Failures(proposes=frozenset([0, 2, 3]))))
    answers = [driver.submit([i], 20, medusa()) for i in range(2)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
        assert answer.sure_stats.accepted > 0
    driver.close()


def test_fail_all_ends_every_request_once_and_the_engine_goes_on() -> None:
    driver = Driver(max_running=2)
    answers = [driver.submit([i], 8, medusa()) for i in range(4)]
    driver.step(3)
    results = driver.engine.fail_all(HeadsError("bad"))
    assert sorted(r.request_id for r in results) == sorted(a.request.id for a in answers)
    assert all(result.finish is FinishReason.ERROR for result in results)
    assert driver.backend.num_used == driver.backend.num_open_samplers == 0
    for answer in answers:
        answer.finish = FinishReason.ERROR
    later = driver.submit([9], 8, medusa())
    driver.run()
    driver.expect(later)
    driver.close()


failing_calls = st.frozensets(st.integers(0, 25), max_size=4)


@given(
    jobs=st.lists(
        st.tuples(prompts(), st.integers(1, 20), speculations, samplings), min_size=1, max_size=8
    ),
    failures=st.builds(
        Failures, failing_calls, failing_calls, failing_calls, leave_cells=st.booleans()
    ),
)
@settings(max_examples=60)
def test_whatever_fails_every_request_ends_once(
    jobs: list[tuple[tuple[int, ...], int, SpeculationParams, SamplingParams]], failures: Failures
) -> None:
    failures.counts.clear()
    driver = Driver(FakeBackend(num_cells=200, failures=failures), max_running=4)
    answers = [driver.submit(*job) for job in jobs]
    driver.run()
    for answer in answers:
        if answer.request.speculation.acceptance == "lossless":
            whole = driver.backend.model.generate(answer.request)
            assert answer.tokens == whole[: len(answer.tokens)]
            assert answer.error is not None or answer.tokens == whole
    driver.close()


def test_the_id_of_a_finished_request_may_come_again() -> None:
    driver = Driver()
    request = Request("same", (1, 2), 3, SamplingParams(), PLAIN)
    for _ in range(2):
        answer = driver.send(request)
        driver.run()
        driver.expect(answer)


def test_a_sampler_that_gives_up_ends_its_request_alone() -> None:
    driver = Driver()
    slow, other = driver.submit((1, 2, 3), 20), driver.submit((4, 5), 20)
    driver.step(3)
    sampler = driver.backend.samplers[0]
    sampler.failure = RequestError("too slow", "grammar")
    driver.run()
    assert slow.error is sampler.failure
    driver.expect(other)
    driver.close()
