"""How many drafted tokens a step should carry: the number that gives most tokens a second.

Knows survivals and seconds, not trees, requests or sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """``num_drafts`` of the likeliest drafts are worth their place; ``rate`` is tokens/s."""

    num_drafts: int
    rate: float


def choose(survivals: Floats, num_roots: int, seconds: Floats, spent: float = 0.0) -> Choice:
    """The number of drafts that maximises expected tokens a second.

    A step with ``num_roots`` requests and the k likeliest drafts yields
    ``num_roots + sum(survivals[:k])`` tokens and takes ``seconds[num_roots + k] + spent``. For
    each k the likeliest drafts are the best ones, and they form trees, since no draft is likelier
    than its parent; so trying every k finds the optimum.

    Args:
        survivals: probability of each draft that it is accepted, falling.
        num_roots: requests in the step, one token each for sure.
        seconds: t(n) for n = 0, 1, ...; n beyond its end is not considered.
        spent: seconds already spent on drafting in this step.
    """
    limit = min(len(survivals), len(seconds) - 1 - num_roots)
    if limit <= 0:
        return Choice(0, num_roots / (float(seconds[num_roots]) + spent))
    tokens = np.empty(limit + 1)
    tokens[0] = num_roots
    np.cumsum(survivals[:limit], out=tokens[1:])
    tokens[1:] += num_roots
    rates = tokens / (seconds[num_roots : num_roots + limit + 1] + spent)
    best = int(rates.argmax())
    return Choice(best, float(rates[best]))


def least_survival(num_tokens: int, seconds: Floats, rate: float) -> float:
    """No draft less likely than this can pay beside ``num_tokens``, however many are added.

    A draft pays when what it adds is worth the time it takes at the present ``rate``; the
    cheapest place to be had is the flattest way from t(num_tokens) to any larger t(n).
    """
    rise = seconds[num_tokens + 1 :] - seconds[num_tokens]
    if not len(rise):
        return 1.0
    return max(0.0, rate * float((rise / np.arange(1, len(rise) + 1)).min()))


def num_worth(gains: Floats, base: float, per_item: float) -> int:
    """How many of ``gains`` (falling) to buy at ``base + per_item`` each; 0 when none pays."""
    if not len(gains):
        return 0
    profits = np.cumsum(gains - per_item) - base
    best = int(profits.argmax())
    return best + 1 if profits[best] > 0 else 0
