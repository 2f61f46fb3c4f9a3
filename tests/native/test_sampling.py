"""What draws and guesses tokens: every instruction set against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from gorgon.noise import Noise, gumbel
from tests.native.conftest import Native

SIZES = pytest.mark.parametrize("size", [1, 7, 16, 17, 512, 1025, 5000])


@SIZES
def test_the_first_of_the_largest_is_found(native: Native, isa: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for levels in (1, 3, 10**6):
        logits = rng.integers(0, levels, size).astype(np.float32)
        assert native.likeliest(isa, logits) == logits.argmax()
    assert native.likeliest(isa, np.full(size, -np.inf, np.float32)) == 0


@SIZES
@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_bounds_are_above_what_they_bound_and_hardly_more(
    native: Native, isa: str, size: int, temperature: float
) -> None:
    logits = np.random.default_rng(size).normal(0, 5, size).astype(np.float32)
    logits[1::5] = -np.inf
    noise = Noise(size, 3, temperature)
    bounds, largest = native.bound(isa, logits, noise, 70)
    tokens = np.arange(70, 70 + size)
    added = gumbel(*noise.key(), tokens) / np.log(2)
    exact = (logits - logits.max()) / temperature / np.log(2) + added
    assert largest == bounds.max()
    assert (bounds >= exact).all()
    # -ln(1 - x) is x for small x only, and so for large noise
    likely = np.isfinite(exact) & (added > 5)
    assert (bounds[likely] < exact[likely] + 0.13).all()


@SIZES
@pytest.mark.parametrize("k", [1, 10])
def test_the_largest_are_found_in_order(native: Native, isa: str, size: int, k: int) -> None:
    rng = np.random.default_rng(size)
    for levels in (3, 10**6):  # of equal ones the first comes first
        logits = rng.integers(-levels, levels, size).astype(np.float32) * np.float32(6 / levels)
        values, places, total = native.best_of(isa, logits, k)
        expected = np.argsort(-logits, kind="stable")[:k]
        assert places[: len(expected)].tolist() == expected.tolist()
        assert values[: len(expected)].tolist() == logits[expected].tolist()
        assert (values[len(expected) :] == -np.inf).all()
        assert total == pytest.approx(np.exp(logits - logits.max()).sum(dtype=np.float64), 1e-5)
