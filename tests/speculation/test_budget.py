"""The budget finds what exhaustive search finds, over thousands of made-up steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.speculation.budget import choose, least_survival, num_worth
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.tree import Source

Floats = npt.NDArray[np.float64]
Chance = np.random.Generator


def random_curve(chance: Chance, size: int) -> list[float]:
    """t(n) with slopes, plateaus and dips as processors and graphics cards have them."""
    steps = chance.exponential(chance.choice([0.02, 0.2, 1.0]), size)
    steps[chance.random(size) < 0.5] = 0.0
    curve = 1.0 + np.cumsum(steps)
    dips = chance.random(size) < 0.1
    curve[dips] *= chance.uniform(0.8, 1.0, int(dips.sum()))
    return [0.0, *curve.tolist()]


def random_candidates(chance: Chance, num_drafts: int) -> Candidates:
    num_roots = int(chance.integers(1, 4))
    candidates = Candidates(list(range(num_roots)), [8] * num_roots)
    sharpness = chance.uniform(0.3, 3.0)
    for token in range(num_drafts):
        parent = int(chance.integers(0, len(candidates)))
        candidates.add(parent, 100 + token, float(chance.random() ** sharpness), Source.HEADS)
    return candidates


def best_rate(candidates: Candidates, curve: list[float], spent: float) -> float:
    """Tokens a second of the best set of drafts in which every draft has its parent."""
    first, count = candidates.num_roots, candidates.num_drafts
    masks = np.arange(1 << count)
    chosen = (masks[:, None] >> np.arange(count)) & 1
    whole = np.ones(len(masks), bool)
    for draft in range(count):
        parent = candidates.parents[first + draft] - first
        if parent >= 0:
            whole &= chosen[:, parent] >= chosen[:, draft]
    tokens = first + chosen @ np.array(candidates.survivals[first:])
    rates = tokens / (np.array(curve)[first + chosen.sum(axis=1)] + spent)
    return float(rates[whole].max())


@pytest.mark.parametrize("seed", range(20))
def test_within_two_percent_of_exhaustive_search(seed: int) -> None:
    chance = np.random.default_rng(seed)
    for _ in range(150):
        candidates = random_candidates(chance, int(chance.integers(0, 10)))
        curve, spent = random_curve(chance, 16), float(chance.choice([0.0, 0.1]))
        order = candidates.ranked(range(candidates.num_roots, len(candidates)))
        survivals = [candidates.survivals[node] for node in order]
        choice = choose(survivals, candidates.num_roots, curve, spent)
        assert choice.rate >= 0.98 * best_rate(candidates, curve, spent)
        nodes = set(order[: choice.num_drafts]) | set(range(candidates.num_roots))
        assert all(candidates.parents[node] in nodes for node in nodes), "a draft lacks its parent"


@given(
    survivals=st.lists(st.floats(0, 1), max_size=12),
    extra=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_draft_below_the_least_survival_never_pays(
    survivals: list[float], extra: float, seed: int
) -> None:
    curve = random_curve(np.random.default_rng(seed), 20)
    ranked = sorted(survivals, reverse=True)
    choice = choose(ranked, 1, curve)
    floor = least_survival(1 + choice.num_drafts, curve, choice.rate)
    unlikely = extra * floor * 0.999
    more = sorted([*ranked[: choice.num_drafts], *[unlikely] * 5], reverse=True)
    least = ranked[choice.num_drafts - 1] if choice.num_drafts else 1.0
    if 0.0 < unlikely <= least:
        assert choose(more, 1, curve).rate == pytest.approx(choice.rate)


def test_no_room_means_no_drafts() -> None:
    curve = [0.0, 1.0, 1.0]
    assert choose([0.9, 0.8], 2, curve).num_drafts == 0
    assert choose([0.9, 0.8], 1, curve).num_drafts == 1
    assert least_survival(2, curve, 1.0) == 1.0


def test_items_are_bought_while_they_pay_their_share() -> None:
    assert num_worth([0.9, 0.5, 0.1], base=0.5, per_item=0.2) == 2
    assert num_worth([0.3, 0.2], base=0.5, per_item=0.2) == 0
    assert num_worth([], base=0.0, per_item=0.0) == 0
