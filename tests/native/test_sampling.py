"""What draws and guesses tokens: every instruction set against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

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
def test_weights_are_exponentials(native: Native, isa: str, size: int, temperature: float) -> None:
    logits = np.random.default_rng(size).normal(0, 5, size).astype(np.float32)
    logits[::5] = -np.inf
    logits[0] = 3.0
    weights, total = native.weigh(isa, logits, temperature)
    scaled = (logits / np.float32(temperature)).astype(np.float64)
    expected = np.exp(scaled - scaled.max())
    np.testing.assert_allclose(weights, expected, rtol=3e-6, atol=1e-37)
    assert total == pytest.approx(expected.sum(), rel=1e-6)


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
