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

from gorgon.backend import Guesses
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
    drawn = [row for row, noise in enumerate(noises) if noise is not None]
    if not drawn:
        return guesses
    tokens, probs = guesses.tokens.copy(), guesses.probs.copy()
    ahead = range(depth - 1, depth - 1 + tokens.shape[1])
    keys = [noise.key(i) for noise in noises if noise is not None for i in ahead]
    shape = (len(drawn), len(ahead), 1)
    first, second = (np.array(words, np.uint32).reshape(shape) for words in zip(*keys, strict=True))
    share = np.array([strength(noise) for noise in noises if noise is not None])[:, None, None]
    others = np.array([math.gamma(1.0 - b) for b in share.flat])[:, None, None]
    stated = probs[drawn].astype(np.float64)
    weights = stated * np.exp(share * gumbel(first, second, tokens[drawn]))
    rest = np.maximum(1.0 - stated.sum(-1, keepdims=True), 0.0) * others
    coupled = weights / (weights.sum(-1, keepdims=True) + rest)
    order = np.argsort(-coupled, -1, kind="stable")
    tokens[drawn] = np.take_along_axis(tokens[drawn], order, -1)
    probs[drawn] = np.take_along_axis(coupled, order, -1)
    return Guesses(tokens, probs, guesses.states)
