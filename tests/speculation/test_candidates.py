"""Candidates: sources merge, survival multiplies, trees come out whole and depth-first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.speculation.candidates import Candidates
from gorgon.speculation.tree import Source


@st.composite
def grown(draw: st.DrawFn) -> Candidates:
    """Lookups below some roots, then a few levels of guesses."""
    num_roots, floor = draw(st.integers(1, 3)), draw(st.sampled_from([0.0, 0.1]))
    candidates = Candidates(list(range(num_roots)), [6] * num_roots)
    for root in range(num_roots):
        tokens = draw(st.lists(st.integers(0, 5), max_size=4))
        probs = [draw(st.floats(0.01, 1)) for _ in tokens]
        candidates.add_chain(root, tokens, probs, floor, Source.LOOKUP)
    parents = list(range(num_roots))
    for _ in range(draw(st.integers(0, 3))):
        guesses = [draw(st.permutations(range(6)))[:3] for _ in parents]
        ranked = [sorted(draw(_three), reverse=True) for _ in parents]
        below = candidates.add_level(parents, guesses, ranked, floor, Source.HEADS)
        parents = list(below)[:4]
    return candidates


_three = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


@given(grown())
def test_survival_is_the_product_of_the_path(candidates: Candidates) -> None:
    for node in range(candidates.num_roots, len(candidates)):
        parent = candidates.parents[node]
        product = candidates.survivals[parent] * candidates.probs[node]
        assert candidates.survivals[node] == pytest.approx(product, abs=1e-12)
        siblings = [n for n in range(len(candidates)) if candidates.parents[n] == parent]
        tokens = [candidates.tokens[n] for n in siblings if n >= candidates.num_roots]
        assert len(set(tokens)) == len(tokens), "a token stands twice below one node"


@given(grown(), st.integers(0, 14))
def test_any_leading_part_makes_whole_trees(candidates: Candidates, count: int) -> None:
    chosen = candidates.ranked(range(candidates.num_roots, len(candidates)))[:count]
    trees = candidates.trees(chosen)
    assert len(trees) == candidates.num_roots
    assert sum(len(tree) - 1 for tree in trees) == len(chosen)
    for tree in trees:
        for siblings in tree.shape.children:
            probs = [tree.probs[child] for child in siblings]
            assert probs == sorted(probs, reverse=True), "the likeliest sibling comes first"
        for node in range(1, len(tree)):
            assert tree.shape.parents[node] in (node - 1, *tree.shape.path_to(node - 1))


def test_two_sources_that_agree_are_likelier_than_either() -> None:
    candidates = Candidates([0], [4])
    candidates.add_chain(0, (7, 8), [0.5, 0.5], 0.0, Source.LOOKUP)
    rows = candidates.add_level([0], [[7, 9]], [[0.6, 0.1]], 0.0, Source.HEADS)
    assert rows == {1: 0, 3: 0}
    assert candidates.probs[1] == pytest.approx(0.8)
    assert candidates.sources[1] is Source.BOTH
    assert candidates.survivals[2] == pytest.approx(0.4)


def test_room_ends_where_the_answer_does() -> None:
    candidates = Candidates([0, 1], [2, 0])
    candidates.add_chain(0, (5, 6, 7), [0.9, 0.9, 0.9], 0.0, Source.LOOKUP)
    candidates.add_chain(1, (5,), [0.9], 0.0, Source.LOOKUP)
    assert [candidates.room_below(node) for node in range(4)] == [2, 0, 1, 0]
    assert candidates.with_room(range(4)) == [0, 2]


def test_what_survives_too_rarely_is_left_out() -> None:
    candidates = Candidates([0, 1], [8, 8])
    candidates.add_chain(0, (5, 6, 7), [0.9, 0.5, 0.9], 0.5, Source.LOOKUP)
    candidates.add_level([0, 1], [[3, 4], [3, 4]], [[0.6, 0.4], [0.4, 0.3]], 0.5, Source.HEADS)
    assert candidates.tokens[2:] == [5, 3]


def test_levels_below_each_other_are_the_product_of_independent_heads() -> None:
    tokens = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    probs = [[0.6, 0.3, 0.05], [0.5, 0.2, 0.1], [0.4, 0.3, 0.2]]
    everything = [
        _product(probs, ranks)
        for depth in (1, 2, 3)
        for ranks in itertools.product(range(3), repeat=depth)
    ]
    for floor in (0.0, 0.1):
        candidates = Candidates([0], [8])
        parents = [0]
        for guessed, ranked in zip(tokens, probs, strict=True):
            count = len(parents)
            parents = list(
                candidates.add_level(
                    parents, [guessed] * count, [ranked] * count, floor, Source.HEADS
                )
            )
        wanted = sorted([survival for survival in everything if survival >= floor], reverse=True)
        assert sorted(candidates.survivals[1:], reverse=True) == pytest.approx(wanted)


def _product(probs: list[list[float]], ranks: tuple[int, ...]) -> float:
    survival = 1.0
    for depth, rank in enumerate(ranks):
        survival *= probs[depth][rank]
    return survival
