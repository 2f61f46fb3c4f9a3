"""Cached prefixes: what is reused, what is evicted, and that no text changes."""

from __future__ import annotations

import numpy as np

from gorgon.engine.prefixes import Prefix, PrefixCache, common_length
from gorgon.request import SamplingParams
from tests.engine.driver import BUSH, TEXTS, Answer, Driver, medusa
from tests.fake import Failures, FakeBackend

TEXT = TEXTS[0]


def ran(driver: Driver, prompt: tuple[int, ...], max_tokens: int = 4) -> Answer:
    answer = driver.submit(prompt, max_tokens)
    driver.run()
    driver.expect(answer)
    return answer


def test_the_longest_common_prefix_is_reused() -> None:
    driver = Driver()
    ran(driver, TEXT[:20])
    ran(driver, TEXT[:30])
    answer = ran(driver, (*TEXT[:26], 31, 31))
    assert answer.sure_stats.cached_tokens == 26
    driver.close()


def test_a_reused_prefix_is_not_computed_again() -> None:
    driver = Driver()
    ran(driver, TEXT[:40])
    driver.backend.row_counts.clear()
    ran(driver, (*TEXT[:40], 30), max_tokens=2)
    assert driver.backend.row_counts == [1, 1]


def test_the_same_prompt_again_leaves_its_last_token_to_compute() -> None:
    driver = Driver()
    ran(driver, TEXT[:20])
    assert ran(driver, TEXT[:20]).sure_stats.cached_tokens == 19


def test_the_answer_is_part_of_the_prefix() -> None:
    driver = Driver()
    first = ran(driver, TEXT[:20], max_tokens=8)
    turn = (*TEXT[:20], *first.tokens, 5, 6)
    assert ran(driver, turn).sure_stats.cached_tokens == 27  # the last token was never computed


def test_a_prefix_serves_many_at_once() -> None:
    driver = Driver(FakeBackend(num_cells=128))
    ran(driver, TEXT[:40])
    answers = [driver.submit((*TEXT[:40], i), 4, medusa()) for i in range(2)]
    driver.step()
    assert driver.engine.pool.cells.num_used < 60
    driver.run()
    for answer in answers:
        driver.expect(answer)
        assert answer.sure_stats.cached_tokens == 40
    driver.close()


def test_a_cancelled_prompt_is_reused_as_far_as_it_was_read() -> None:
    driver = Driver(prefill_batch=8)
    driver.cancel(driver.submit(TEXT[:40], 4))
    answer = driver.submit(TEXT[:40], 4)
    driver.step(2)
    driver.cancel(answer)
    assert ran(driver, TEXT[:40]).sure_stats.cached_tokens == 16


def test_rejected_drafts_never_become_part_of_a_prefix() -> None:
    driver = Driver(FakeBackend(agreement=0.5))
    first = driver.submit(TEXT[:10], 20, medusa(BUSH))
    driver.run()
    again = driver.submit((*TEXT[:10], *first.tokens, 3), 20, medusa(BUSH))
    driver.run()
    driver.expect(again)
    assert again.sure_stats.cached_tokens == 29


def test_a_request_may_refuse_to_reuse() -> None:
    driver = Driver()
    ran(driver, TEXT[:20])
    answer = driver.submit(TEXT[:20], 4, reuse_prefix=False)
    driver.run()
    driver.expect(answer)
    assert answer.sure_stats.cached_tokens == 0
    driver.close()


def test_the_least_recently_used_prefix_goes_first() -> None:
    driver = Driver(cached_cells=70)
    ran(driver, TEXTS[0][:30])
    ran(driver, TEXTS[1][:30])
    assert ran(driver, TEXTS[0][:30]).sure_stats.cached_tokens == 29
    ran(driver, TEXTS[2][:30])
    assert driver.engine.pool.num_cached_cells <= 70
    assert ran(driver, TEXTS[0][:30]).sure_stats.cached_tokens == 29
    assert ran(driver, TEXTS[1][:30]).sure_stats.cached_tokens <= 1
    driver.close()


def test_prefixes_give_way_to_requests_that_need_their_cells() -> None:
    driver = Driver(FakeBackend(num_cells=100), cached_cells=100)
    for text in TEXTS:
        ran(driver, text[:25])
    answer = driver.submit(tuple(range(20)), 60, medusa())
    driver.run()
    driver.expect(answer)
    driver.close()


def test_prefixes_give_way_to_requests_that_need_their_ids() -> None:
    driver = Driver(FakeBackend(max_sequences=4), cached_cells=200)
    for text in TEXTS:
        ran(driver, text[:25])
    answers = [driver.submit((i,), 10) for i in range(3)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    driver.close()


def test_a_prefix_evicted_while_its_cells_are_in_use_takes_nothing_away() -> None:
    driver = Driver(FakeBackend(num_cells=96), cached_cells=96)
    ran(driver, TEXT[:40])
    user = driver.submit((*TEXT[:40], 9), 12, medusa())
    driver.step(2)
    driver.engine.pool.forget_prefixes()
    driver.check()
    driver.run()
    driver.expect(user)
    driver.close()


def test_a_prefix_that_a_longer_one_covers_is_dropped() -> None:
    driver = Driver()
    first = ran(driver, TEXT[:20], max_tokens=4)
    ran(driver, (*TEXT[:20], *first.tokens, 7))
    assert len(driver.engine.pool.prefixes) == 1


def test_nothing_is_kept_when_nothing_may_be() -> None:
    driver = Driver(cached_cells=0)
    ran(driver, TEXT[:20])
    assert driver.engine.pool.cells.num_used == driver.backend.num_used == 0


def test_sampling_and_penalties_see_the_whole_prompt_though_it_is_cached() -> None:
    sampling = SamplingParams(temperature=0.9, frequency_penalty=1.5, seed=4)
    driver = Driver()
    for _ in range(2):
        answer = driver.submit(TEXT[:30], 20, medusa(), sampling)
        driver.run()
        driver.expect(answer)


# -- the cache on its own -------------------------------------------------------------------------


def prefix(sequence_id: int, *tokens: int) -> Prefix:
    return Prefix(sequence_id, np.array(tokens, np.int32), list(range(len(tokens))))


def test_common_length() -> None:
    assert common_length(np.array([1, 2, 3], np.int32), np.array([1, 2, 4], np.int32)) == 2
    assert common_length(np.array([1, 2], np.int32), np.array([1, 2, 4], np.int32)) == 2
    assert common_length(np.array([], np.int32), np.array([1], np.int32)) == 0


def test_longest_and_covered() -> None:
    cache = PrefixCache()
    a, b, c = prefix(1, 1, 2, 3), prefix(2, 1, 2, 3, 4), prefix(3, 9)
    for each in (a, b, c):
        cache.add(each)
    assert cache.longest([1, 2, 3, 4, 5]) == (b, 4)
    assert cache.longest([7]) == (None, 0)
    assert cache.covered_by([1, 2, 3, 5]) == [a]
    cache.touch(a)
    assert cache.oldest() is b
    cache.remove(b)
    assert list(cache) == [c, a]


# -- prompts that are still being computed ---------------------------------------------------------


def num_rows(driver: Driver) -> int:
    return sum(driver.backend.row_counts)


def test_requests_with_one_prompt_compute_it_once() -> None:
    driver = Driver()
    answers = [driver.submit(TEXT[:40], 6, medusa(), SamplingParams(1.0, seed=i)) for i in range(4)]
    driver.step()
    assert num_rows(driver) < 40 + 10
    driver.run()
    for answer in answers:
        driver.expect(answer)
    assert [answer.sure_stats.cached_tokens for answer in answers] == [0, 39, 39, 39]
    driver.close()


def test_what_follows_the_shared_part_is_computed_by_each() -> None:
    driver = Driver(prefill_batch=8)
    answers = [driver.submit((*TEXT[:30], i, i, 3), 6) for i in range(3)]
    driver.run()
    for answer in answers:
        driver.expect(answer)
    assert [answer.sure_stats.cached_tokens for answer in answers] == [0, 30, 30]
    driver.close()


def test_a_running_answer_gives_its_prompt_away() -> None:
    driver = Driver()
    first = driver.submit(TEXT[:40], 30)
    driver.step(3)
    second = driver.submit(TEXT[:40], 5)
    results = driver.step()
    assert {result.request_id for result in results} == {first.request.id, second.request.id}
    driver.run()
    assert second.sure_stats.cached_tokens == 39
    driver.close()


def test_followers_of_one_who_leaves_agree_on_another() -> None:
    driver = Driver(prefill_batch=8)
    answers = [driver.submit(TEXT[:40], 5) for _ in range(4)]
    driver.step(2)
    driver.cancel(answers[0])
    driver.run()
    for answer in answers[1:]:
        driver.expect(answer)
    assert [answer.sure_stats.cached_tokens for answer in answers[1:]] == [16, 39, 39]
    driver.close()


def test_nothing_is_taken_from_a_prompt_that_failed() -> None:
    driver = Driver(FakeBackend(failures=Failures(prefills=frozenset([1]))), prefill_batch=8)
    answers = [driver.submit(TEXT[:40], 5) for _ in range(3)]
    driver.run()
    assert answers[0].error is not None
    for answer in answers[1:]:
        driver.expect(answer)
    assert answers[1].sure_stats.cached_tokens == 8
    driver.close()


def test_nobody_waits_for_a_few_tokens_or_against_its_will() -> None:
    driver = Driver()
    answers = [
        driver.submit(TEXT[:18], 5),
        driver.submit((*TEXT[:12], 31, 31), 5),
        driver.submit(TEXT[:18], 5, reuse_prefix=False),
    ]
    driver.step()
    assert all(answer.tokens for answer in answers)
    driver.run()
    assert [answer.sure_stats.cached_tokens for answer in answers] == [0, 0, 0]
    driver.close()
