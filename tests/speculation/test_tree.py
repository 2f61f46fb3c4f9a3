"""Tree shapes: branches, pruning, the forms in which users write them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gorgon.errors import RequestError
from gorgon.request import TreePaths
from gorgon.speculation.tree import (
    MAX_NODES,
    ROOT_SHAPE,
    DraftTree,
    TreeShape,
    chain,
    from_paths,
    parse_paths,
    root_only,
    split,
)
from tests.engine.driver import tree_paths


@st.composite
def shapes(draw: st.DrawFn, max_nodes: int = 16) -> TreeShape:
    """Any shape with parents before children, depth-first or not."""
    num_nodes = draw(st.integers(1, max_nodes))
    parents = [0, *(draw(st.integers(0, node - 1)) for node in range(1, num_nodes))]
    ranks = [parents[:node].count(parents[node]) for node in range(num_nodes)]
    return TreeShape(tuple(parents), tuple(ranks))


@pytest.fixture
def example() -> TreeShape:
    """The tree drawn at the top of ``gorgon.speculation.tree``."""
    return TreeShape((0, 0, 1, 1, 0), (0, 0, 0, 1, 1))


def test_the_example_of_the_module(example: TreeShape) -> None:
    assert example.depths == (0, 1, 2, 2, 1)
    assert example.children == ((1, 4), (2, 3), (), (), ())
    assert example.branches == (range(3), range(2), range(1), range(1, 2), range(2, 3))
    assert (example.num_branches, example.max_depth, example.max_rank) == (3, 2, 1)
    assert example.path_to(3) == (0, 1, 3)


@given(shapes())
def test_branches_are_the_leaves_below_a_node(shape: TreeShape) -> None:
    leaves = {
        shape.branches[node][0]: node for node in range(len(shape)) if not shape.children[node]
    }
    assert sorted(leaves) == list(range(shape.num_branches))
    for node in range(len(shape)):
        below = [b for b, leaf in leaves.items() if node in shape.path_to(leaf)]
        assert list(shape.branches[node]) == sorted(below)
        assert list(shape.branches[node]) == list(range(min(below), max(below) + 1))


@given(shapes())
def test_a_node_starts_its_first_childs_branch(shape: TreeShape) -> None:
    for node, children in enumerate(shape.children):
        if children:
            assert shape.branches[node][0] == shape.branches[children[0]][0]


@given(shapes())
def test_paths_lead_down_from_the_root(shape: TreeShape) -> None:
    for node in range(len(shape)):
        path = shape.path_to(node)
        assert (path[0], path[-1], len(path)) == (0, node, shape.depths[node] + 1)
        assert all(shape.parents[b] == a for a, b in itertools.pairwise(path))


@given(tree_paths())
def test_a_tree_has_exactly_the_paths_that_it_was_made_of(paths: TreePaths) -> None:
    shape = from_paths(paths)
    made = {tuple(shape.ranks[n] for n in shape.path_to(node)[1:]) for node in range(1, len(shape))}
    assert made == set(paths)
    assert len(shape) == len(paths) + 1


@given(tree_paths())
def test_nodes_of_a_path_lie_together_in_depth_first_order(paths: TreePaths) -> None:
    shape = from_paths(paths)
    for node in range(1, len(shape)):
        first = shape.children[shape.parents[node]][0] == node
        assert not first or shape.parents[node] == node - 1


@given(tree_paths())
def test_the_written_form_gives_the_same_tree(paths: TreePaths) -> None:
    text = ";".join(",".join(str(rank) for rank in path) for path in paths)
    assert parse_paths(text) == from_paths(paths)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_chain_is_one_branch(length: int) -> None:
    shape = chain(length)
    assert shape.depths == tuple(range(length + 1))
    assert shape.num_branches == 1
    assert shape == from_paths(tuple((0,) * depth for depth in range(1, length + 1)))


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (((),), "must be a non-empty list of ranks from 0"),
        (((0,), (-1,)), "must be a non-empty list"),
        (((0,), (0,)), "names a path twice"),
        (((0,), (1, 0)), r"\[1, 0\] lacks its parent \[1\]"),
        (tuple((i,) for i in range(MAX_NODES)), "64 nodes, at most 63"),
    ],
)
def test_bad_paths_are_refused(paths: TreePaths, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        from_paths(paths)
    assert refusal.value.field == "tree"


@pytest.mark.parametrize("text", ["a", "0;0,", "0;x,1", "0.5"])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not like '0;0,0;1'") as refusal:
        parse_paths(text)
    assert refusal.value.field == "tree"


def test_no_path_is_the_root_alone() -> None:
    assert from_paths(()) == parse_paths("") == chain(0) == ROOT_SHAPE
    assert (root_only(7).shape, root_only(7).tokens) == (ROOT_SHAPE, (7,))


def test_as_many_nodes_as_allowed_are_allowed() -> None:
    assert len(from_paths(tuple((i,) for i in range(MAX_NODES - 1)))) == MAX_NODES


def test_child_with_finds_a_token_below_a_node_only(example: TreeShape) -> None:
    tree = DraftTree(example, (5, 6, 7, 8, 7))
    assert tree.child_with(0, 7) == 4
    assert tree.child_with(1, 7) == 2
    assert tree.child_with(1, 6) is None
    assert tree.child_with(2, 7) is None


@pytest.mark.parametrize(
    ("parents", "ranks"), [((), ()), ((1,), (0,)), ((0, 1), (0, 0)), ((0, 0), (0,))]
)
def test_a_malformed_shape_is_our_bug(parents: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        TreeShape(parents, ranks)


@given(shapes(), st.data())
def test_a_split_is_what_one_path_leaves(shape: TreeShape, data: st.DataObject) -> None:
    path = shape.path_to(data.draw(st.integers(0, len(shape) - 1)))
    parts = split(shape, path)
    for branch in range(shape.num_branches):
        nodes = {node for node in range(len(shape)) if branch in shape.branches[node]}
        assert parts.common[branch] == len(nodes.intersection(path))
        assert (branch in parts.cut) == (not nodes.issubset(path))
    assert parts.common[parts.winner] == len(path)
