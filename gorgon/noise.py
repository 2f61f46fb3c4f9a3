"""The noise that tokens are drawn with: a function of seed, place and token alone.

The token whose ``logit / temperature + noise`` is largest has the model's own distribution when the
noise is Gumbel-distributed (the Gumbel-max trick). As the noise of a draw is known before its
logits are, a draft can be the token that wins with what the heads believe and the same noise:
drafter-invariant speculation (Daliri, Musco and Suresh, 2024, arXiv:2408.07978). What is drawn does
not depend on what was drafted.

``native/noise.h`` computes the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF


class Noise(NamedTuple):
    """Of a request's next draw.

    ``seed`` has 64 bits; ``place`` counts the request's draws, accepted drafts included;
    ``temperature`` > 0 is the one that tokens are drawn at.
    """

    seed: int
    place: int
    temperature: float

    def next(self) -> Noise:
        """Of the draw after this one."""
        return Noise(self.seed, self.place + 1, self.temperature)

    def key(self, ahead: int = 0) -> tuple[np.uint32, np.uint32]:
        """Two words of the draw that is ``ahead`` draws after the next one.

        Between draws and seeds they differ at random: splitmix64 (Steele, Lea and Flood, 2014).
        """
        z = (self.seed + (self.place + ahead + 1) * 0x9E3779B97F4A7C15) & _LONG
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _LONG
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _LONG
        z ^= z >> 31
        return np.uint32(z & _WORD), np.uint32(z >> 32)


def gumbel(
    first: Words | np.uint32, second: Words | np.uint32, tokens: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """The noise of ``tokens`` in draws with the words ``first`` and ``second``, which broadcast."""
    x = _mixed(tokens.astype(np.uint32) * np.uint32(0x9E3779B1) + first, 16, 0x7FEB352D)
    high = _mixed((_mixed(x, 15, 1) + second) * np.uint32(0x846CA68B), 16, 1)
    low = _mixed(_mixed((high + first) * np.uint32(0x85EBCA6B), 13, 0xC2B2AE35), 16, 1)
    rest = (high * 2.0**32 + low + 0.5) * 2.0**-64  # uniform; its complement is, too
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(-np.log1p(-rest)))


def _mixed(x: npt.NDArray[Any], shift: int, factor: int) -> Words:
    return np.asarray((x ^ x >> np.uint32(shift)) * np.uint32(factor))
