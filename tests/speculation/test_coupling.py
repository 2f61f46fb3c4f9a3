"""Guesses that know the noise of the draw they are about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.backend import Guesses
from gorgon.noise import Noise, gumbel
from gorgon.speculation import coupling
from gorgon.speculation.coupling import couple

NUM_TOKENS, COUNT = 8, 20_000


def guesses(probs: list[list[float]], depths: int = 1) -> Guesses:
    stated = np.array(probs, np.float32).reshape(len(probs), depths, -1)
    tokens = np.broadcast_to(np.arange(stated.shape[-1], dtype=np.int32), stated.shape)
    return Guesses(tokens.copy(), stated)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
def test_what_is_stated_is_how_often_a_token_wins(temperature: float) -> None:
    """Heads err as they are taken to; the model draws with its own logits and the noise."""
    rng = np.random.default_rng(1)
    logs = rng.normal(0.0, 1.5, (COUNT, NUM_TOKENS))
    probs = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    errors = rng.gumbel(size=probs.shape)
    truth = coupling._ERROR * (np.log(probs) + errors)
    stated = guesses(probs.tolist())
    found = couple(stated, [Noise(i, 4, temperature) for i in range(COUNT)])
    won = np.empty(COUNT, np.int64)
    for i in range(COUNT):
        noise = gumbel(*Noise(i, 4, temperature).key(), np.arange(NUM_TOKENS))
        won[i] = (truth[i] / temperature + noise).argmax()
    right = found.tokens[:, 0] == won[:, None]
    assert (np.diff(found.probs[:, 0]) <= 0).all()
    for low in np.arange(0.0, 1.0, 0.1):
        there = (found.probs[:, 0] >= low) & (found.probs[:, 0] < low + 0.1)
        error = right[there].mean() - found.probs[:, 0][there].mean()
        assert abs(error) < 4 * 0.5 / np.sqrt(there.sum())
    best = stated.probs[:, 0].argmax(1) == won
    assert right[:, 0].mean() > best.mean() + 0.02 * temperature


@given(
    st.lists(st.floats(0.0, 0.1), min_size=3, max_size=9).map(lambda p: sorted(p, reverse=True)),
    st.floats(1e-3, 100.0),
)
def test_probabilities_stay_probabilities(probs: list[float], temperature: float) -> None:
    stated = guesses([probs, probs])
    found = couple(stated, [Noise(1, 0, temperature), None])
    assert sorted(found.tokens[0, 0]) == list(range(len(probs)))
    assert (found.probs >= 0).all()
    assert found.probs.sum(-1).max() < 1 + 1e-6
    assert found.tokens[1].tolist() == stated.tokens[1].tolist()
    assert found.probs[1].tolist() == stated.probs[1].tolist()


def test_each_depth_has_the_noise_of_its_own_draw() -> None:
    probs = [[0.3, 0.25, 0.2, 0.15]]
    noise = Noise(9, 5, 1.0)
    both = couple(guesses([probs[0] * 2], depths=2), [noise])
    for depth in (1, 2):
        alone = couple(guesses(probs), [noise], depth)
        assert both.tokens[:, depth - 1].tolist() == alone.tokens[:, 0].tolist()
        later = couple(guesses(probs), [Noise(9, 5 + depth - 1, 1.0)])
        assert later.tokens.tolist() == alone.tokens.tolist()
    assert couple(guesses(probs), [None]).probs.tolist() == guesses(probs).probs.tolist()


def test_hardly_any_temperature_changes_hardly_anything() -> None:
    stated = guesses([[0.5, 0.3, 0.1]])
    found = couple(stated, [Noise(1, 0, 1e-3)])
    np.testing.assert_allclose(found.probs, stated.probs, rtol=0.01)
