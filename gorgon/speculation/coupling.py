"""What guesses are worth once the noise that the next tokens are drawn with is known.

A draft is right when it is the token that the sampler draws, the largest ``logit / T + g`` with g
the noise (``gorgon.noise``). Heads that give a token probability q are taken to err in its logit by
Gumbel-distributed errors of scale s: without noise it then wins with q, as it should, and with it
by the same law with

    q e^(b g) / (sum of q e^(b g) over all tokens),    b = T / s.

Guesses are few; all other tokens together count with the mean of e^(b g), which is gamma(1 - b).
At a temperature of 0, b is 0 and nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gorgon.backend import Floats, Guesses, Ints, Level
from gorgon.noise import Noise, gumbel

_ERROR = 1.25  # s; docs/training.md
_MOST = 0.95  # of b, beyond which the mean of e^(b g) says little


def strength(noise: Noise | None) -> float:
    """b, how much of the noise counts; 0 where there is none."""
    return 0.0 if noise is None else min(noise.temperature / _ERROR, _MOST)


def couple(guesses: Guesses, noises: Sequence[Noise | None], depth: int = 1) -> Guesses:
    """``guesses`` as their requests' noise makes them, likeliest first.

    Args:
        guesses: of which the first depth is ``depth``.
        noises: of each row's request; None leaves a row as it is.
        depth: draws from the next one on, which is 1.
    """
    rows, depths, top_k = guesses.tokens.shape
    owners = [noise for noise in noises for _ in range(depths)]
    ahead = [*range(depth - 1, depth - 1 + depths)] * rows
    flat = guesses.tokens.reshape(-1, top_k), guesses.probs.reshape(-1, top_k)
    tokens, probs = couple_rows(*flat, owners, ahead)
    shape = guesses.tokens.shape
    return Guesses(tokens.reshape(shape), probs.reshape(shape), guesses.states)


def couple_levels(levels: Sequence[Level], noises: Sequence[Noise | None]) -> Sequence[Level]:
    """``couple`` for all levels of a search at once, whose requests have ``noises``."""
    if not any(noises):
        return levels
    owners, ahead, above = [*noises], [0] * len(noises), noises
    for depth, level in enumerate(levels[1:], 1):
        above = [above[parent] for parent in level.parents.tolist()]
        owners += above
        ahead += [depth] * len(above)
    tokens, probs = couple_rows(
        np.concatenate([level.guesses.tokens[:, 0] for level in levels]),
        np.concatenate([level.guesses.probs[:, 0] for level in levels]),
        owners,
        ahead,
    )
    found, first = [], 0
    for level in levels:
        rows = slice(first, first + len(level.parents))
        guesses = Guesses(tokens[rows, None], probs[rows, None], level.guesses.states)
        found.append(Level(guesses, level.parents, level.tokens))
        first = rows.stop
    return found


def couple_rows(
    tokens: Ints, probs: Floats, noises: Sequence[Noise | None], ahead: Sequence[int]
) -> tuple[Ints, Floats]:
    """``tokens`` and ``probs`` [rows, top_k] as each row's noise makes them.

    Args:
        tokens: guesses.
        probs: what the heads state of them.
        noises: of each row's request.
        ahead: how many draws after the next one each row is about.
    """
    if not any(noises):
        return tokens, probs
    keys: dict[tuple[Noise | None, int], tuple[int, int, float, float]] = {}
    draws = list(zip(noises, ahead, strict=True))
    for noise, draw in set(draws):
        first, second = (0, 0) if noise is None else noise.key(draw)
        b = strength(noise)
        keys[noise, draw] = (int(first), int(second), b, math.gamma(1.0 - b))
    table = np.array([keys[draw] for draw in draws])
    words = table[:, :2].astype(np.uint32)
    weights = probs * np.exp(table[:, 2:3] * gumbel(words[:, :1], words[:, 1:], tokens))
    rest = np.maximum(1.0 - probs.sum(1, dtype=np.float64), 0.0) * table[:, 3]
    coupled = weights / (weights.sum(1) + rest)[:, None]
    order = np.negative(coupled).argsort(1, kind="stable")
    order += np.arange(0, tokens.size, tokens.shape[1])[:, None]
    ranked = tokens.take(order), coupled.take(order).astype(np.float32)
    for row, noise in enumerate(noises):
        if noise is None:
            ranked[0][row], ranked[1][row] = tokens[row], probs[row]
    return ranked
