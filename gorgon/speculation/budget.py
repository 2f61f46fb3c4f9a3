"""How many drafted tokens a step should carry: the number that gives most tokens a second.

Knows survivals and seconds, not trees, requests or sources. Plain loops: between two passes of the
model an array operation takes longer than the few tens of additions that it would do.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """``num_drafts`` of the likeliest drafts are worth their place; ``rate`` is tokens/s."""

    num_drafts: int
    rate: float


def choose(
    survivals: Iterable[float],
    num_roots: int,
    seconds: Sequence[float],
    spent: float = 0.0,
    least_gain: float = 1.0,
    *,
    growing: bool = False,
) -> Choice:
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
        least_gain: how many times as many tokens a second there must be with drafts as without.
        growing: whether drafts are made as ``survivals`` is read, so that it should not be read
            beyond the one behind which none can pay.
    """
    tokens = float(num_roots)
    plain = tokens / (seconds[num_roots] + spent)
    best, best_rate = 0, least_gain * plain
    times, flattest = seconds[num_roots + 1 :], math.inf
    for count, (time, survival) in enumerate(zip(times, survivals, strict=False), 1):
        tokens += survival
        rate = tokens / (time + spent)
        if rate > best_rate:
            best, best_rate, flattest = count, rate, math.inf
        elif (
            growing and survival < best_rate * flattest
        ):  # worked out anew only where that may end it
            flattest = least_survival(num_roots + count, seconds, 1.0)
            if survival < best_rate * flattest:
                break
    return Choice(best, best_rate if best else plain)


def least_survival(num_tokens: int, seconds: Sequence[float], rate: float) -> float:
    """No draft less likely than this can pay beside ``num_tokens``, however many are added.

    A draft pays when what it adds is worth the time it takes at the present ``rate``; the
    cheapest place to be had is the flattest way from t(num_tokens) to any larger t(n).
    """
    here, beyond = seconds[num_tokens], seconds[num_tokens + 1 :]
    if not beyond:
        return 1.0
    rises = map(operator.sub, beyond, itertools.repeat(here))
    flattest: float = min(map(operator.truediv, rises, itertools.count(1)))
    return max(0.0, rate * flattest)


def num_worth(gains: Sequence[float], base: float, per_item: float) -> int:
    """How many of ``gains`` (falling) to buy at ``base + per_item`` each; 0 when none pays."""
    best, most = 0, 0.0
    for count, total in enumerate(itertools.accumulate(gains), 1):
        profit = total - count * per_item - base
        if profit > most:
            best, most = count, profit
    return best
