"""Samplers draw what llama.cpp draws from the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gorgon.backend import BatchRow, Output
from gorgon.config import EngineSettings
from gorgon.llama import kernels
from gorgon.llama.backend import LlamaBackend
from gorgon.llama.candidates import Candidates
from gorgon.llama.library import llama
from gorgon.llama.sampler import make_chain, make_sampler
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


@pytest.mark.parametrize("params", PARAMS, ids=repr)
def test_every_draw_is_llama_cpps_own(backend: LlamaBackend, params: SamplingParams) -> None:
    backend.clear()
    tokens = backend.model.tokenize("The sun rises in", add_special=True, parse_special=False)
    sampler = make_sampler(backend.context, params, tokens)
    chain = make_chain(params, tokens, backend.num_vocab)
    for position in range(24):
        output = backend.decode([BatchRow(tokens[position % len(tokens)], position, (1,))])
        wanted = llama.llama_sampler_sample(chain, backend.context.handle, 0)
        assert sampler.draw(output, 0) == wanted
    sampler.close()
    llama.llama_sampler_free(chain)


def test_a_draw_is_llama_cpps_own_on_any_logits_with_the_native_library_and_without(
    backend: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(0, spread, backend.num_vocab) for spread in (0, 0.01, 1, 4, 30)]
    rows += [np.where(rng.random(backend.num_vocab) < 1e-4, row, -np.inf) for row in rows[1:]]
    output = Output(np.array(rows, np.float32), np.zeros((len(rows), 1), np.float32))
    for temperature in (0.1, 0.7, 1.0, 5.0):
        params = SamplingParams(temperature=temperature, seed=5)
        samplers = [make_sampler(backend.context, params, [1])]
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "functions", lambda: None)
            samplers.append(make_sampler(backend.context, params, [1]))
        chain = make_chain(params, [1], backend.num_vocab)
        everything = Candidates(backend.num_vocab)
        for row in [*range(len(rows))] * 10:
            everything.fill(output.logits[row])
            everything.apply(chain)
            drawn = [sampler.draw(output, row) for sampler in samplers]
            assert drawn == [everything.selected] * 2
        for sampler in samplers:
            sampler.close()
        llama.llama_sampler_free(chain)


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
    chain = make_chain(params, [1], backend.num_vocab)
    everything = Candidates(backend.num_vocab)
    for _ in range(200):
        everything.fill(logits[0])
        everything.apply(chain)
        assert sampler.draw(output, 0) == everything.selected
    sampler.close()
    llama.llama_sampler_free(chain)
