"""Log-probabilities are the model's own, whoever guessed the token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gorgon.engine.logprobs import token_logprob
from gorgon.errors import QueueFullError
from gorgon.request import FinishReason, SamplingParams
from tests.engine.driver import BUSH, CHAIN, PLAIN, Driver, medusa


def test_probabilities_sum_to_one_and_the_likeliest_come_first() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0], np.float32)
    entry = token_logprob(logits, 2, 4)
    assert [token for token, _ in entry.top] == [1, 3, 2, 0]
    assert sum(math.exp(logprob) for _, logprob in entry.top) == pytest.approx(1.0)
    assert entry.logprob == dict(entry.top)[2]
    assert token_logprob(logits, 0, 0).top == ()


def test_tokens_of_accepted_drafts_have_the_logprobs_of_drawn_ones() -> None:
    driver = Driver()
    sampling = SamplingParams(temperature=0.7, seed=5, frequency_penalty=0.5)
    ways = [PLAIN, medusa(CHAIN), medusa(BUSH), medusa(BUSH, acceptance="lossless")]
    answers = [
        driver.submit((1, 2, 3), 24, way, sampling, num_logprobs=3, reuse_prefix=False)
        for way in ways
    ]
    driver.run()
    plain = answers[0]
    assert len(plain.logprobs) == 24
    assert any(depth > 0 for depth in answers[2].depths)
    for answer in answers:
        assert [entry.token for entry in answer.logprobs] == answer.tokens
        assert answer.logprobs == plain.logprobs


def test_nobody_pays_for_logprobs_without_asking() -> None:
    driver = Driver()
    answer = driver.submit((1, 2, 3), 8, medusa())
    driver.run()
    assert answer.logprobs == []


def test_who_waits_too_long_is_refused() -> None:
    driver = Driver(max_running=1, max_queue_time=1e-6)
    first = driver.submit((1, 2, 3), 8)
    driver.step()
    second = driver.submit((1, 2, 3), 8)
    driver.run()
    assert first.finish is FinishReason.LENGTH or isinstance(first.error, QueueFullError)
    assert isinstance(second.error, QueueFullError)
    driver.close()
