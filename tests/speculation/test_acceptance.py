"""What is accepted: the lossless walk, typical acceptance, and the distribution that comes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.speculation.acceptance import (
    Accepted,
    accept_lossless,
    accept_typical,
    entropy,
    log_softmax,
)
from gorgon.speculation.tree import DraftTree, TreeShape, chain, from_paths, root_only

Floats = npt.NDArray[np.float32]


def never(_token: int, _count: int) -> bool:
    return False


@st.composite
def filled_trees(draw: st.DrawFn) -> DraftTree:
    """Any tree whose children of one node hold different tokens of 0 to 7."""
    num_nodes = draw(st.integers(1, 14))
    parents = [0, *(draw(st.integers(0, node - 1)) for node in range(1, num_nodes))]
    ranks = [parents[1:node].count(parents[node]) if node else 0 for node in range(num_nodes)]
    orders = [draw(st.permutations(range(16))) for _ in range(num_nodes)]
    tokens = [0] + [orders[parents[node]][ranks[node]] for node in range(1, num_nodes)]
    return DraftTree(TreeShape(tuple(parents), tuple(ranks)), tuple(tokens))


# -- lossless -------------------------------------------------------------------------------------


@given(filled_trees(), st.lists(st.integers(0, 15), min_size=20, max_size=20), st.integers(1, 9))
def test_the_walk_gives_exactly_what_was_drawn(
    tree: DraftTree, draws: list[int], last: int
) -> None:
    asked: list[int] = []

    def draw(node: int) -> int:
        asked.append(node)
        return draws[len(asked) - 1]

    accepted = accept_lossless(tree, draw, lambda _, count: count >= last)
    assert accepted.tokens == tuple(draws[: len(asked)])
    assert accepted.path == tuple(asked) == tree.shape.path_to(asked[-1])
    assert len(accepted.tokens) == len(accepted.path) <= last
    assert accepted.num_drafts == len(accepted.path) - 1
    assert tuple(tree.tokens[node] for node in accepted.path[1:]) == accepted.tokens[:-1]
    if len(accepted.tokens) < last:
        assert tree.child_with(accepted.path[-1], accepted.tokens[-1]) is None


def test_the_walk_stops_at_the_last_token_though_it_was_drafted() -> None:
    tree = DraftTree(chain(3), (1, 2, 3, 4))
    accepted = accept_lossless(tree, lambda node: node + 2, lambda token, _: token == 3)
    assert accepted == Accepted((0, 1), (2, 3))


def test_the_root_alone_draws_once() -> None:
    assert accept_lossless(root_only(1), lambda _: 9, never) == Accepted((0,), (9,))


# -- typical --------------------------------------------------------------------------------------


def logs(*probs: float) -> Floats:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, np.float32))


def typical(
    tree: DraftTree,
    rows: Sequence[Floats],
    is_last: Callable[[int, int], bool] = never,
    epsilon: float = 0.09,
    alpha: float = 0.3,
) -> tuple[Accepted, list[int]]:
    observed: list[int] = []
    accepted = accept_typical(
        tree,
        lambda node: rows[node],
        lambda node: 100 + node,
        observed.append,
        is_last,
        epsilon=epsilon,
        alpha=alpha,
    )
    return accepted, observed


@pytest.mark.parametrize(
    ("p", "taken"), [(0.10, True), (0.091, True), (0.089, False), (0.0, False)]
)
def test_epsilon_bounds_the_threshold_where_the_model_is_sure(p: float, taken: bool) -> None:
    tree = DraftTree(chain(1), (0, 1))
    accepted, _ = typical(tree, [logs(1 - p, p), logs(1, 0)], alpha=1.0)
    assert (accepted.num_drafts == 1) is taken


@pytest.mark.parametrize(("alpha", "taken"), [(0.9, True), (1.0, False)])
def test_alpha_scales_the_threshold_where_the_model_is_unsure(alpha: float, taken: bool) -> None:
    # Uniform over 100 tokens: exp(-H) = 0.01 = p, so p > alpha * exp(-H) iff alpha < 1.
    rows = [logs(*[0.01] * 100)] * 2
    accepted, _ = typical(DraftTree(chain(1), (0, 5)), rows, epsilon=1.0, alpha=alpha * 1.0001)
    assert (accepted.num_drafts == 1) is taken


def test_the_longest_plausible_path_wins_over_a_likelier_short_one() -> None:
    tree = DraftTree(from_paths(((0,), (1,), (1, 0))), (0, 0, 1, 2))
    rows = [logs(0.8, 0.15, 0.05), logs(0, 0, 1), logs(0, 0, 1), logs(1, 0, 0)]
    accepted, observed = typical(tree, rows)
    assert accepted == Accepted((0, 2, 3), (1, 2, 103))
    assert observed == [1, 2]


def test_ties_in_length_go_to_the_likelier_path() -> None:
    tree = DraftTree(from_paths(((0,), (0, 0), (1,), (1, 0))), (0, 0, 2, 1, 2))
    rows = [logs(0.55, 0.45, 0), logs(0.5, 0, 0.5), logs(1, 0, 0), logs(0.2, 0, 0.8), logs(1, 0, 0)]
    accepted, _ = typical(tree, rows)
    assert accepted.path == (0, 3, 4)  # 0.45 * 0.8 > 0.55 * 0.5


def test_nothing_below_an_implausible_node_is_taken() -> None:
    tree = DraftTree(chain(2), (0, 1, 2))
    accepted, observed = typical(tree, [logs(1, 0, 0), logs(0, 0, 1), logs(1, 0, 0)])
    assert accepted == Accepted((0,), (100,))
    assert observed == []


def test_typical_stops_at_the_last_token_and_draws_nothing_after_it() -> None:
    tree = DraftTree(chain(2), (0, 1, 2))
    rows = [logs(0, 1, 0), logs(0, 0, 1), logs(1, 0, 0)]
    accepted, observed = typical(tree, rows, lambda token, _: token == 1)
    assert accepted == Accepted((0,), (1,))
    assert observed == [1]
    accepted, _ = typical(tree, rows, lambda _, count: count == 2)
    assert accepted == Accepted((0, 1), (1, 2))


@given(filled_trees(), st.integers(0, 2**31), st.integers(1, 6))
def test_typical_takes_the_best_of_all_plausible_paths(
    tree: DraftTree, seed: int, last: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (len(tree), 16)).astype(np.float32)
    rows = [log_softmax(row, 1.0) for row in logits]
    accepted, observed = typical(tree, rows, lambda _, count: count >= last)
    bars = [min(0.09, 0.3 * math.exp(-entropy(row))) for row in rows]
    plausible: list[tuple[int, float, int]] = []
    for node in range(len(tree)):
        path = tree.shape.path_to(node)
        steps = [float(rows[a][tree.tokens[b]]) for a, b in itertools.pairwise(path)]
        if all(math.exp(p) > bars[a] for a, p in zip(path, steps, strict=False)):
            plausible.append((len(path), sum(steps), node))
    best = tree.shape.path_to(max(plausible)[2])
    assert len(accepted.tokens) == len(accepted.path) == min(len(best), last)
    assert accepted.path == best[: len(accepted.path)]
    assert observed == [tree.tokens[node] for node in best[1:]][:last]


# -- numbers --------------------------------------------------------------------------------------


def test_log_softmax_is_a_distribution_and_survives_large_logits() -> None:
    logs = log_softmax(np.array([1e4, 1e4, -1e4], np.float32), 0.5)
    assert np.exp(logs).tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_log_softmax_leaves_the_logits_alone() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    log_softmax(logits, 1.0)
    assert logits.tolist() == [1.0, 2.0]


def test_entropy() -> None:
    assert entropy(logs(0.25, 0.25, 0.25, 0.25)) == pytest.approx(math.log(4))
    assert entropy(logs(1.0, 0.0)) == pytest.approx(0.0)
