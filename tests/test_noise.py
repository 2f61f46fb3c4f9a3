"""Noise is Gumbel-distributed, whatever is counted up, and known to whoever has seed and place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from gorgon.noise import Noise, gumbel

COUNT = 20_000
Floats = npt.NDArray[np.float64]


def of(seed: int, place: int, token: int) -> float:
    return float(gumbel(*Noise(seed, place, 1.0).key(), np.array([token]))[0])


ALONG: dict[str, Callable[[int], float]] = {
    "seeds": lambda i: of(i, 3, 7),
    "places": lambda i: of(3, i, 7),
    "seeds of 64 bits": lambda i: of(2**64 - 1 - i, 0, 7),
    "places and seeds": lambda i: of(i, -i, 7),
}


def kolmogorov_distance(sample: Floats) -> float:
    """From the Gumbel distribution, in units of what chance makes of it."""
    expected = np.exp(-np.exp(-np.sort(sample)))
    return float(np.abs(expected - np.arange(len(sample)) / len(sample)).max() * len(sample) ** 0.5)


def check(sample: Floats) -> None:
    assert kolmogorov_distance(sample) < 1.95  # the 0.999 quantile
    uniform = np.exp(-np.exp(-sample))
    for lag in (1, 2, 16):
        assert abs(np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]) * len(sample) ** 0.5 < 4


@pytest.mark.parametrize("along", ALONG)
def test_noise_looks_random_along(along: str) -> None:
    check(np.array([ALONG[along](i) for i in range(COUNT)]))


@pytest.mark.parametrize("place", [0, 1, 1000])
def test_noise_looks_random_along_tokens(place: int) -> None:
    check(gumbel(*Noise(1, place, 1.0).key(), np.arange(COUNT)))


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    """Of seeds, places and tokens: which of 8 tokens wins here says nothing of who wins there."""
    tokens = np.arange(8)
    base = [gumbel(*Noise(i, 0, 1.0).key(), tokens).argmax() for i in range(COUNT)]
    for other in (
        [*base[1:], 0],
        [gumbel(*Noise(i, 1, 1.0).key(), tokens).argmax() for i in range(COUNT)],
        [gumbel(*Noise(i, 0, 1.0).key(), tokens + 8).argmax() for i in range(COUNT)],
    ):
        pairs = np.bincount(np.array(base) * 8 + np.array(other), minlength=64)
        chi_square = ((pairs - COUNT / 64) ** 2 / (COUNT / 64)).sum()
        assert chi_square < 103.4  # the 0.999 quantile with 63 degrees of freedom


def test_the_draws_ahead_are_those_that_come() -> None:
    noise = Noise(5, 0, 0.7)
    assert [noise.key(2), noise.key(3)] == [noise.next().next().key(), noise.next().key(2)]
    assert len({noise.key(i) for i in range(1000)}) == 1000
