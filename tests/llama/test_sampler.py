"""Samplers draw what is largest with noise among all that llama.cpp's samplers leave."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gorgon.backend import BatchRow, Floats, Output
from gorgon.config import EngineSettings
from gorgon.llama import kernels
from gorgon.llama.backend import LlamaBackend
from gorgon.llama.candidates import Candidates
from gorgon.llama.chain import SamplerChain
from gorgon.llama.sampler import make_sampler
from gorgon.noise import Noise, gumbel
from gorgon.request import SamplingParams

PARAMS = [
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(temperature=1.5, seed=2),
    SamplingParams(temperature=0.7, seed=3, top_p=0.95),
    SamplingParams(temperature=0.5, seed=4, min_p=0.05),
    SamplingParams(temperature=1.5, seed=4, min_p=0.01, top_k=30),
    SamplingParams(temperature=1.5, seed=4, min_p=0.01, top_p=0.8),
    SamplingParams(temperature=0.7, seed=5, top_k=40, top_p=0.9),
    SamplingParams(temperature=0.7, seed=6, repetition_penalty=1.3),
    SamplingParams(temperature=0.7, seed=7, logit_bias=((70, 100.0),)),
    SamplingParams(repetition_penalty=1.2),
]


@pytest.fixture(scope="module")
def backend() -> Iterator[LlamaBackend]:
    backend = LlamaBackend(EngineSettings(threads=1, num_cells=256))
    yield backend
    backend.close()


def expected(backend: LlamaBackend, chain: SamplerChain, logits: Floats) -> int:
    """What ``chain`` draws when it sees the whole vocabulary, without the native library."""
    everything = Candidates(backend.num_vocab)
    everything.fill(logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "functions", lambda: None)
        token = chain.choose(everything)
    chain.observe(token)
    return token


@pytest.mark.parametrize("params", PARAMS, ids=repr)
def test_a_draw_is_that_of_the_whole_vocabulary(
    backend: LlamaBackend, params: SamplingParams
) -> None:
    backend.clear()
    tokens = backend.model.tokenize("The sun rises in", add_special=True, parse_special=False)
    sampler = make_sampler(backend.context, params, tokens)
    chain = SamplerChain(params, tokens, backend.num_vocab)
    for position in range(24):
        output = backend.decode([BatchRow(tokens[position % len(tokens)], position, (1,))])
        assert sampler.draw(output, 0) == expected(backend, chain, output.logits[0])
    sampler.close()
    chain.close()


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 5.0])
def test_a_draw_is_the_largest_with_noise_with_the_native_library_and_without(
    backend: LlamaBackend, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, spread, backend.num_vocab) for spread in (0, 0.01, 1, 4, 30)]
    rows += [np.where(rng.random(backend.num_vocab) < 1e-4, row, -np.inf) for row in rows[1:]]
    output = Output(np.array(rows, np.float32), np.zeros((len(rows), 1), np.float32))
    params = SamplingParams(temperature=temperature, seed=5)
    sampler = make_sampler(backend.context, params, [1])
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "functions", lambda: None)
        plain = make_sampler(backend.context, params, [1])
    noise, ids = Noise(5, 0, temperature), np.arange(backend.num_vocab)
    for row in [*range(len(rows))] * 5:
        scores = output.logits[row].astype(np.float64) / temperature + gumbel(*noise.key(), ids)
        assert sampler.noise == plain.noise == noise
        assert sampler.draw(output, row) == scores.argmax()
        assert plain.draw(output, row) == scores.argmax()  # many tokens through the library
        noise = noise.next()
    for used in (sampler, plain):
        used.observe(3)
        assert used.noise == noise.next()
        used.close()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_come_as_often_as_their_probability_says(
    backend: LlamaBackend, temperature: float
) -> None:
    logits = np.full((1, backend.num_vocab), -np.inf, np.float32)
    logits[0, ::1000] = np.linspace(0.0, -6.0, len(logits[0, ::1000]))
    output, count = Output(logits, np.zeros((1, 1), np.float32)), 40_000
    probs = np.exp(logits[0].astype(np.float64) / temperature)
    probs /= probs.sum()
    sampler = make_sampler(backend.context, SamplingParams(temperature=temperature, seed=1), [1])
    drawn = np.bincount([sampler.draw(output, 0) for _ in range(count)], minlength=len(probs))
    likely = probs * count >= 5
    chi_square = ((drawn - count * probs)[likely] ** 2 / (count * probs[likely])).sum()
    degrees = likely.sum() - 1
    assert drawn[probs == 0].sum() == 0
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_a_request_without_a_seed_has_noise_of_its_own(backend: LlamaBackend) -> None:
    noises = {
        make_sampler(backend.context, SamplingParams(temperature=1.0), [1]).noise for _ in "ab"
    }
    assert len(noises) == 2
    assert make_sampler(backend.context, SamplingParams(), [1]).noise is None


@pytest.mark.parametrize("native", [True, False])
def test_greedy_takes_the_first_of_the_largest(
    backend: LlamaBackend, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(kernels, "functions", lambda: None)
    backend.clear()
    output = backend.decode([BatchRow(7 + i, i, (1,)) for i in range(19)])
    made_up = Output(np.floor(output.logits), output.hidden)
    output.logits[:] = np.roll(made_up.logits, 1, axis=0)
    sampler = make_sampler(backend.context, SamplingParams(), [1])
    for row in range(19):
        for logits in (output, made_up):
            expected = np.flatnonzero(logits.logits[row] == logits.logits[row].max())[0]
            assert sampler.draw(logits, row) == expected


def test_top_p_counts_the_tail_that_a_low_temperature_hides(backend: LlamaBackend) -> None:
    """llama.cpp cuts before it sharpens: with a long tail top-p keeps more of what leads."""
    logits = np.full((1, backend.num_vocab), -9.0, np.float32)
    logits[0, :40] = -0.05 * np.arange(40)
    output = Output(logits, np.zeros((1, 1), np.float32))
    params = SamplingParams(temperature=0.2, top_p=0.5, seed=1)
    sampler = make_sampler(backend.context, params, [1])
    chain = SamplerChain(params, [1], backend.num_vocab)
    for _ in range(200):
        assert sampler.draw(output, 0) == expected(backend, chain, logits[0])
    sampler.close()
    chain.close()
