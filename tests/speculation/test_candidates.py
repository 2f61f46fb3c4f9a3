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
    num_roots = draw(st.integers(1, 3))
    candidates = Candidates(list(range(num_roots)), [6] * num_roots)
    sources = st.sampled_from([Source.HEADS, Source.LOOKUP])
    for _ in range(draw(st.integers(0, 14))):
        parent = draw(st.integers(0, len(candidates) - 1))
        candidates.add(parent, draw(st.integers(0, 5)), draw(st.floats(0.01, 1)), draw(sources))
    return candidates


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
    chosen = candidates.by_survival()[:count]
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
    candidates.add(candidates.add(0, 7, 0.5, Source.LOOKUP), 8, 0.5, Source.LOOKUP)
    node = candidates.add(0, 7, 0.6, Source.HEADS)
    assert candidates.probs[node] == pytest.approx(0.8)
    assert candidates.sources[node] is Source.BOTH
    assert candidates.survivals[2] == pytest.approx(0.4)
    candidates.add(0, 7, 0.9, Source.LOOKUP)
    assert len(candidates) == 3


def test_room_ends_where_the_answer_does() -> None:
    candidates = Candidates([0, 1], [2, 0])
    first = candidates.add(0, 5, 0.9, Source.LOOKUP)
    second = candidates.add(first, 6, 0.9, Source.LOOKUP)
    assert [candidates.room_below(node) for node in (0, 1, first, second)] == [2, 0, 1, 0]
    candidates.add_product(1, [[7]], [[0.9]], floor=0.0, max_nodes=4)
    assert candidates.num_drafts == 2


def test_the_product_of_independent_heads_is_grown_best_first() -> None:
    tokens = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    probs = [[0.6, 0.3, 0.05], [0.5, 0.2, 0.1], [0.4, 0.3, 0.2]]
    everything = sorted(
        (
            _product(probs, ranks)
            for depth in (1, 2, 3)
            for ranks in itertools.product(range(3), repeat=depth)
        ),
        reverse=True,
    )
    candidates = Candidates([0], [8])
    candidates.add_product(0, tokens, probs, floor=0.0, max_nodes=20)
    assert sorted(candidates.survivals[1:], reverse=True) == pytest.approx(everything[:20])
    limited = Candidates([0], [8])
    limited.add_product(0, tokens, probs, floor=0.1, max_nodes=20)
    assert sorted(limited.survivals[1:], reverse=True) == pytest.approx(
        [survival for survival in everything if survival >= 0.1]
    )


def _product(probs: list[list[float]], ranks: tuple[int, ...]) -> float:
    survival = 1.0
    for depth, rank in enumerate(ranks):
        survival *= probs[depth][rank]
    return survival
