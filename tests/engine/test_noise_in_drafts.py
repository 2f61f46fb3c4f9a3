"""Drafts of sampled requests know the noise that tokens are drawn with."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gorgon.backend import Guesses, Level
from gorgon.config import EngineSettings
from gorgon.engine import heads_calls
from gorgon.engine.engine import Engine
from gorgon.engine.load import load
from gorgon.engine.sequence import Sequence
from gorgon.llama.backend import LlamaBackend
from gorgon.noise import Noise
from gorgon.request import Request, SamplingParams, SpeculationParams
from gorgon.speculation.coupling import couple, couple_levels

CHAIN = SpeculationParams(mode="fixed", tree=((0,), (0, 0)))


def random_guesses(rng: np.random.Generator, rows: int) -> Guesses:
    probs = -np.sort(-rng.dirichlet(np.ones(6), rows))[:, None, :4]
    tokens = rng.permuted(np.tile(np.arange(50, dtype=np.int32), (rows, 1)), axis=1)
    return Guesses(tokens[:, None, :4], probs.astype(np.float32))


def test_every_row_of_a_search_knows_the_noise_of_its_request() -> None:
    rng, noises = np.random.default_rng(1), [Noise(1, 7, 1.0), None, Noise(2, 3, 0.5)]
    parents = [[0, 1, 2], [2, 0, 1, 2], [3, 0]]
    owners = [[0, 1, 2], [2, 0, 1, 2], [2, 2]]
    levels = [
        Level(random_guesses(rng, len(rows)), np.array(rows, np.int32), np.zeros(0, np.int32))
        for rows in parents
    ]
    found = couple_levels(levels, noises)
    for depth, (level, rows, before) in enumerate(zip(found, owners, levels, strict=True), 1):
        expected = couple(before.guesses, [noises[row] for row in rows], depth)
        assert level.guesses.tokens.tolist() == expected.tokens.tolist()
        assert level.guesses.probs.tolist() == expected.probs.tolist()
        assert level.parents is before.parents
    assert couple_levels(levels, [None] * 3) is levels


def test_typical_acceptance_wants_what_is_plausible_not_what_will_be_drawn() -> None:
    noise = Noise(1, 2, 0.7)
    sampler: Any = SimpleNamespace(noise=noise)
    for acceptance, expected in (("lossless", noise), ("typical", None)):
        speculation = SpeculationParams(acceptance=acceptance)  # type: ignore[arg-type]
        request = Request("r", (1,), 4, speculation=speculation)
        assert Sequence(request, sampler, 1, None, 0.0, 0.0, [1], []).noise is expected


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = load(EngineSettings(threads=2, num_cells=2048, measure_seconds=0.2)).engine
    yield engine
    assert isinstance(engine.backend, LlamaBackend)
    engine.backend.close()


def answers(engine: Engine) -> tuple[dict[str, list[int]], int]:
    """The texts of six requests, and how many drafts were accepted."""
    backend = engine.backend
    assert isinstance(backend, LlamaBackend)
    prompt = backend.model.tokenize("Write about the sea.", add_special=True, parse_special=False)
    texts: dict[str, list[int]] = {str(seed): [] for seed in range(6)}
    accepted = 0
    for seed in texts:
        sampling = SamplingParams(temperature=1.0, seed=int(seed))
        engine.submit(Request(seed, tuple(prompt), 48, sampling, CHAIN, ignore_eos=True))
    while engine.has_work:
        for result in engine.step():
            texts[result.request_id] += result.tokens
            accepted += result.stats.accepted if result.stats else 0
    return texts, accepted


def test_the_model_accepts_more_and_writes_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, accepted = answers(engine)
    monkeypatch.setattr(heads_calls, "_noises", lambda sequences: [None] * len(sequences))
    same_texts, fewer = answers(engine)
    if engine.backend.orders_cells:  # else rounding depends on the drafts beside a token
        assert texts == same_texts
    assert accepted > 1.15 * fewer > 0
