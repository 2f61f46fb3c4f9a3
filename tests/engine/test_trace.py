"""The tree of a step goes out to those who ask for it, and only to them."""

from __future__ import annotations

import pytest

from gorgon.request import StepResult
from tests.engine.driver import BUSH, PLAIN, Driver, medusa

PROMPT = (3, 1, 4, 1, 5, 9)


def run(driver: Driver) -> list[StepResult]:
    results = []
    while driver.engine.has_work:
        results += driver.step()
    return results


def test_every_step_brings_the_tree_that_it_tried() -> None:
    driver = Driver()
    driver.submit(PROMPT, 30, medusa(BUSH), want_tree=True)
    results = run(driver)
    last, deepest = PROMPT[-1], 0
    for result in results:
        tree = result.tree
        assert tree is not None
        assert tree.tokens[0] == last
        assert tuple(tree.tokens[node] for node in tree.path[1:]) == result.tokens[:-1]
        assert all(tree.parents[b] == a for a, b in zip(tree.path, tree.path[1:], strict=False))
        last, deepest = result.tokens[-1], max(deepest, len(tree.path))
    assert deepest > 2
    driver.close()


def test_survival_is_the_product_of_the_stated_probabilities() -> None:
    driver = Driver()
    driver.submit(PROMPT, 12, medusa(BUSH), want_tree=True)
    best, second = 0.9, 0.9 - 0.8 / 3  # of FakeBackend, for every head
    tree = run(driver)[1].tree
    assert tree is not None
    assert tree.parents == (0, 0, 1, 1, 0, 4, 0)
    expected = [1, best, best * best, best * second, second, second * best]
    assert tree.survival[:6] == pytest.approx(expected)
    driver.close()


def test_plain_decoding_traces_its_root_and_nobody_gets_a_tree_unasked() -> None:
    driver = Driver()
    traced = driver.submit(PROMPT, 5, PLAIN, want_tree=True)
    driver.submit(PROMPT, 5, medusa(BUSH))
    for result in run(driver):
        if result.request_id != traced.request.id:
            assert result.tree is None
        else:
            assert result.tree is not None
            assert (result.tree.parents, result.tree.path) == ((0,), (0,))
    driver.close()
