"""What is grown best first is what the likeliest of all guesses are, and no worse a choice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from gorgon.backend import Floats, Guesses, Ints, Level
from gorgon.speculation.best_first import grow
from gorgon.speculation.budget import choose
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.rows import (
    Chain,
    ChainedRow,
    IndependentRow,
    Row,
    SearchedRow,
    searched,
)
from gorgon.speculation.survival import Correction
from gorgon.speculation.tree import Source
from tests.speculation.test_budget import random_curve

NUM_DEPTHS, TOP_K, NUM_TOKENS = 3, 4, 9
Chance = np.random.Generator


class Text:
    """What is guessed below any path of one request: heads by depth and a chain."""

    def __init__(self, chance: Chance) -> None:
        falling = np.sort(chance.random((NUM_DEPTHS, TOP_K)) ** chance.uniform(0.5, 3.0))
        self.stated: list[list[float]] = falling[:, ::-1].tolist()
        self.tokens = [chance.permutation(NUM_TOKENS)[:TOP_K].tolist() for _ in range(NUM_DEPTHS)]
        self.correction = Correction(float(chance.normal()))
        length = int(chance.choice([0, 1, 5]))
        tokens = chance.integers(0, NUM_TOKENS, length).tolist()
        self.chain = Chain(tokens, chance.random(length).tolist())
        self.max_depth = int(chance.integers(1, 5))

    def row(self) -> Row:
        """For ``grow``."""
        heads = IndependentRow(self.tokens, self.stated, self.correction, self.max_depth)
        length = min(len(self.chain.tokens), self.max_depth)
        if not length:
            return heads
        return ChainedRow(heads, Chain(self.chain.tokens[:length], self.chain.probs[:length]))

    def add_level_by_level(self, candidates: Candidates, root: int) -> None:
        """All that is guessed, as conditioned heads are asked."""
        candidates.add_chain(root, self.chain.tokens, list(self.chain.probs), 0.0, Source.LOOKUP)
        parents = [root]
        for depth, (tokens, stated) in enumerate(zip(self.tokens, self.stated, strict=True), 1):
            probs, count = self.correction.apply_each(stated, depth), len(parents)
            below = candidates.add_level(
                parents, [tokens] * count, [probs] * count, 0.0, Source.HEADS
            )
            parents = candidates.with_room(below)


def random_texts(chance: Chance) -> list[Text]:
    return [Text(chance) for _ in range(chance.integers(1, 4))]


def growing(texts: list[Text]) -> tuple[Candidates, Iterator[float]]:
    candidates = Candidates([0] * len(texts), [text.max_depth for text in texts])
    return candidates, grow(candidates, {i: text.row() for i, text in enumerate(texts)})


def everything(texts: list[Text]) -> Candidates:
    candidates = Candidates([0] * len(texts), [text.max_depth for text in texts])
    for root, text in enumerate(texts):
        text.add_level_by_level(candidates, root)
    return candidates


def paths(candidates: Candidates) -> dict[tuple[int, ...], tuple[float, float, Source]]:
    """What is known of every draft, by its root and the tokens down to it."""
    known: list[tuple[int, ...]] = [(root,) for root in range(candidates.num_roots)]
    for node in range(candidates.num_roots, len(candidates)):
        known.append((*known[candidates.parents[node]], candidates.tokens[node]))
    facts = zip(candidates.probs, candidates.survivals, candidates.sources, strict=True)
    return dict(list(zip(known, facts, strict=True))[candidates.num_roots :])


@pytest.mark.parametrize("seed", range(100))
def test_all_drafts_come_once_and_fall(seed: int) -> None:
    texts = random_texts(np.random.default_rng(seed))
    candidates, growth = growing(texts)
    survivals = list(growth)
    assert survivals == sorted(survivals, reverse=True)
    assert survivals == candidates.survivals[len(texts) :]
    found, wanted = paths(candidates), paths(everything(texts))
    assert found.keys() == wanted.keys()
    for path, (prob, survival, source) in found.items():
        assert (prob, survival) == pytest.approx(wanted[path][:2], rel=1e-9, abs=1e-12)
        assert source is wanted[path][2]


@pytest.mark.parametrize("seed", range(10))
def test_the_choice_is_never_worse_than_among_all_guesses(seed: int) -> None:
    chance = np.random.default_rng(seed)
    for _ in range(60):
        texts = random_texts(chance)
        curve, spent = random_curve(chance, 64), float(chance.choice([0.0, 0.3]))
        least_gain = float(chance.choice([1.0, 1.02, 1.2]))
        full = everything(texts)
        ranked = full.ranked(range(len(texts), len(full)))
        survivals = [full.survivals[node] for node in ranked]
        best = max(
            (len(texts) + sum(survivals[:count])) / (curve[len(texts) + count] + spent)
            for count in range(min(len(survivals), len(curve) - 1 - len(texts)) + 1)
        )
        plain = len(texts) / (curve[len(texts)] + spent)
        candidates, growth = growing(texts)
        choice = choose(growth, len(texts), curve, spent, least_gain, growing=True)
        assert choice.rate == pytest.approx(best if best > least_gain * plain else plain)
        assert candidates.num_drafts >= choice.num_drafts


def test_no_more_is_made_than_can_pay() -> None:
    texts = [Text(np.random.default_rng(3))]
    texts[0].stated = [[0.6, 0.2, 0.1, 0.05]] * NUM_DEPTHS
    candidates, growth = growing(texts)
    curve = [0.0] + [1.0 + 0.25 * n for n in range(64)]
    choice = choose(growth, 1, curve, growing=True)
    assert candidates.num_drafts <= choice.num_drafts + 1


def test_a_search_is_followed_where_it_went_on() -> None:
    probs = np.array([[[0.5, 0.3, 0.1]]], np.float32)
    first = Level(_guesses([[1, 2, 3], [5, 6, 7]], probs), _ids([0, 1]), _ids([0, 0]))
    parents, tokens = _ids([0, 0, 1]), _ids([2, 1, 5])
    second = Level(_guesses([[11, 12, 13], [21, 22, 23], [31, 32, 33]], probs), parents, tokens)
    levels = [searched(first), searched(second)]
    candidates = Candidates([0, 0, 0], [4, 1, 9])
    rows = [SearchedRow(levels, row, Correction(), depth) for row, depth in ((0, 4), (1, 1))]
    survivals = list(grow(candidates, dict(enumerate(rows))))
    below = dict(itertools.islice(paths(candidates).items(), 6))
    assert list(below) == [(0, 1), (1, 5), (0, 2), (1, 6), (0, 1, 21), (0, 1, 22)]
    assert len(survivals) == 3 + 3 + 6, "nothing below 3, nor below the second text's only level"


def _guesses(tokens: list[list[int]], probs: Floats) -> Guesses:
    ids = np.array(tokens, np.int32)[:, None]
    return Guesses(ids, np.broadcast_to(probs, ids.shape))


def _ids(numbers: list[int]) -> Ints:
    return np.array(numbers, np.int32)
