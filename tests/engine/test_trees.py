"""Drafts never change the text: any tree, any company, any moment of joining and leaving."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gorgon.request import FinishReason, SamplingParams, SpeculationParams, TreePaths
from tests.engine.driver import (
    BUSH,
    CHAIN,
    PLAIN,
    Answer,
    Driver,
    lossless,
    medusa,
    prompts,
    samplings,
    tree_paths,
)
from tests.fake import FakeBackend, ToyModel

SAMPLED = SamplingParams(temperature=1.0, seed=3)


@given(prompt=prompts(), tree=tree_paths(), sampling=samplings, agreement=st.floats(0, 1))
@settings(max_examples=80)
def test_any_tree_gives_the_text_of_the_model_alone(
    prompt: tuple[int, ...], tree: TreePaths, sampling: SamplingParams, agreement: float
) -> None:
    driver = Driver(FakeBackend(agreement=agreement))
    answer = driver.submit(prompt, 30, medusa(tree), sampling)
    driver.run()
    driver.expect(answer)
    driver.close()


@given(
    arrivals=st.lists(
        st.tuples(prompts(), st.integers(1, 24), lossless, samplings, st.integers(0, 12)),
        min_size=1,
        max_size=8,
    ),
    chunk=st.integers(1, 24),
    num_cells=st.sampled_from([80, 120, 400]),
    trash_cells=st.sampled_from([0, 4, 64]),
    cached_cells=st.sampled_from([0, 40, 200]),
)
@settings(max_examples=80)
def test_requests_that_join_at_any_step_do_not_change_each_other(
    arrivals: list[tuple[tuple[int, ...], int, SpeculationParams, SamplingParams, int]],
    chunk: int,
    num_cells: int,
    trash_cells: int,
    cached_cells: int,
) -> None:
    driver = Driver(
        FakeBackend(num_cells=num_cells, max_sequences=12),
        prefill_chunk=chunk,
        prefill_batch=2 * chunk,
        max_running=5,
        trash_cells=trash_cells,
        cached_cells=cached_cells,
    )
    answers: list[Answer] = []
    for prompt, max_tokens, speculation, sampling, wait in arrivals:
        answers.append(driver.submit(prompt, max_tokens, speculation, sampling))
        driver.step(wait)
    driver.run()
    for answer in answers:
        driver.expect(answer)
    driver.close()


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("tree", [CHAIN, BUSH], ids=["chain", "bush"])
@pytest.mark.parametrize("batch", [1, 8])
def test_batches_of_one_and_of_many(batch: int, tree: TreePaths, sampling: SamplingParams) -> None:
    driver = Driver(FakeBackend(num_cells=1024, max_sequences=64))
    answers = [driver.submit([i, 2, 3], 40, medusa(tree), sampling) for i in range(batch)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    assert sum(answer.sure_stats.accepted for answer in answers) > 0
    driver.close()


def test_perfect_heads_give_a_token_per_node_of_a_chain() -> None:
    driver = Driver(FakeBackend(agreement=1.0))
    answer = driver.submit([1, 2], 41, medusa(CHAIN))
    driver.run()
    driver.expect(answer)
    assert answer.sure_stats.steps == 1 + 10  # one step without guesses, then four tokens each
    assert answer.sure_stats.accepted == answer.sure_stats.drafted == 30


def test_hopeless_heads_cost_no_step() -> None:
    driver = Driver(FakeBackend(agreement=0.0))
    answer = driver.submit([1, 2], 20, medusa(((0,),)))
    driver.run()
    driver.expect(answer)
    assert answer.sure_stats.steps == 20
    assert answer.sure_stats.accepted == 0


@given(tree=tree_paths(), sampling=samplings, max_tokens=st.integers(1, 9))
@settings(max_examples=60)
def test_the_last_token_may_lie_anywhere_on_an_accepted_path(
    tree: TreePaths, sampling: SamplingParams, max_tokens: int
) -> None:
    driver = Driver(FakeBackend(agreement=1.0))
    answer = driver.submit([4, 5, 6], max_tokens, medusa(tree), sampling)
    driver.run()
    driver.expect(answer)
    assert answer.finish is FinishReason.LENGTH
    assert len(answer.tokens) == max_tokens
    driver.close()


@given(tree=tree_paths(), sampling=samplings, eog=st.sets(st.integers(0, 31), max_size=8))
@settings(max_examples=60)
def test_an_end_token_ends_the_request_anywhere_on_an_accepted_path(
    tree: TreePaths, sampling: SamplingParams, eog: set[int]
) -> None:
    driver = Driver(FakeBackend(ToyModel(eog_ids=frozenset(eog)), agreement=1.0))
    stopping = driver.submit([4, 5, 6], 30, medusa(tree), sampling)
    ignoring = driver.submit([4, 5, 6], 30, medusa(tree), sampling, ignore_eos=True)
    driver.run()
    driver.expect(stopping)
    driver.expect(ignoring)
    assert (stopping.finish is FinishReason.STOP) == (stopping.tokens[-1] in eog)
    assert not eog.intersection(stopping.tokens[:-1])
    assert len(ignoring.tokens) == 30
    driver.close()


def test_an_end_token_below_an_accepted_draft_is_found() -> None:
    text = ToyModel().generate(Driver().submit([4, 5, 6], 12).request)
    end = next(i for i in range(4, 12) if text[i] not in text[:i])
    driver = Driver(FakeBackend(ToyModel(eog_ids=frozenset([text[end]])), agreement=1.0))
    answer = driver.submit([4, 5, 6], 12, medusa(CHAIN))
    driver.run()
    assert answer.tokens == text[: end + 1]
    assert answer.finish is FinishReason.STOP


def test_company_and_drafts_share_the_rows_of_a_batch() -> None:
    driver = Driver(FakeBackend(max_rows=10, agreement=0.9))
    answers = [driver.submit([i], 20, medusa(BUSH)) for i in range(6)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    assert max(driver.backend.row_counts) == 10
    driver.close()


def test_company_and_drafts_share_the_sequence_ids() -> None:
    driver = Driver(FakeBackend(max_sequences=9, agreement=0.9))
    answers = [driver.submit([i], 20, medusa(BUSH)) for i in range(6)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    driver.close()


def test_a_latecomer_gets_an_id_that_branches_had() -> None:
    driver = Driver(FakeBackend(max_sequences=9, agreement=0.9))
    early = [driver.submit([i], 40, medusa(BUSH)) for i in range(2)]
    driver.step(4)
    assert driver.engine.pool.num_free_ids < 5
    late = [driver.submit([9 + i], 10, medusa(BUSH)) for i in range(5)]
    driver.run()
    for answer in early + late:
        driver.expect(answer)
    driver.close()


def test_rejected_cells_keep_their_place_so_that_tokens_stay_in_order() -> None:
    driver = Driver(FakeBackend(num_cells=1024, agreement=0.5), trash_cells=1024)
    answers = [driver.submit([i], 40, medusa(BUSH)) for i in range(5)]
    while driver.engine.has_work:
        for sequence in driver.engine.scheduler.running:
            assert driver.backend.num_out_of_order(sequence.id) == 0
        driver.step()
    assert all(answer.is_over for answer in answers)


def test_plain_requests_draft_nothing_and_never_run_the_heads() -> None:
    driver = Driver()
    answer = driver.submit([1, 2, 3], 12, PLAIN)
    driver.run()
    driver.expect(answer)
    assert answer.sure_stats.drafted == 0
    assert driver.backend.failures.counts["proposes"] == 0
