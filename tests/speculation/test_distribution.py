"""Sampling through a tree gives the model's own distribution, whatever is drafted.

A chi-square test over all continuations of three tokens, with fixed seeds: the draws are the same
in every run, so that it passes always or never. That it can fail is shown beside it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from gorgon.request import Request, SamplingParams, SpeculationParams
from gorgon.speculation.acceptance import Accepted, accept_lossless, log_softmax
from gorgon.speculation.tree import DraftTree
from tests.engine.driver import BUSH, CHAIN, PLAIN, Driver, medusa
from tests.fake import FakeBackend, ToyModel

NUM_VOCAB, LENGTH, NUM_TEXTS = 4, 3, 2000
PROMPT = (1, 2)
TEXTS = list(itertools.product(range(NUM_VOCAB), repeat=LENGTH))
LEAST_EXPECTED = 5.0  # below it, chi-square does not hold; such texts count as one


def toy() -> ToyModel:
    return ToyModel(NUM_VOCAB, sharpness=1.0)


def truth(model: ToyModel, temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of every text of ``LENGTH`` tokens after the prompt, by multiplication."""

    probs = {}
    for text in TEXTS:
        state, log_p = 0, 0.0
        for position, token in enumerate((*PROMPT, *text)):
            if position >= len(PROMPT):
                log_p += log_softmax(model.logits([state])[0], temperature)[token]
            state = model.advance(state, position, token)
        probs[text] = math.exp(log_p)
    return probs


def excess(counts: Counter[tuple[int, ...]], probs: dict[tuple[int, ...], float]) -> float:
    """Chi-square over its 0.999 quantile (Wilson and Hilferty's approximation)."""
    cells: Counter[tuple[int, ...]] = Counter()
    expected: dict[tuple[int, ...], float] = defaultdict(float)
    for text, p in probs.items():
        cell = text if counts.total() * p >= LEAST_EXPECTED else ()
        cells[cell] += counts[text]
        expected[cell] += counts.total() * p
    statistic = sum((cells[cell] - mean) ** 2 / mean for cell, mean in expected.items())
    share = 2 / (9 * (len(expected) - 1))
    return statistic / ((len(expected) - 1) * (1 - share + 3.09 * math.sqrt(share)) ** 3)


def sample(speculation: SpeculationParams, temperature: float) -> Counter[tuple[int, ...]]:
    """Texts of the real engine, many requests a batch, each with its own seed."""
    backend = FakeBackend(
        toy(), num_cells=4096, max_rows=512, max_sequences=256, max_guesses=3, agreement=0.7
    )
    driver = Driver(backend, max_running=32, max_waiting=NUM_TEXTS)
    for seed in range(NUM_TEXTS):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        driver.engine.submit(Request(str(seed), PROMPT, LENGTH, sampling, speculation))
    texts: dict[str, list[int]] = {str(seed): [] for seed in range(NUM_TEXTS)}
    accepted = 0
    while driver.engine.has_work:
        for result in driver.engine.step():
            texts[result.request_id] += result.tokens
            accepted += result.stats.accepted if result.stats else 0
    assert (accepted > NUM_TEXTS / 4) == (speculation is not PLAIN)
    return Counter(tuple(text) for text in texts.values())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    "speculation", [PLAIN, medusa(CHAIN), medusa(BUSH)], ids=["plain", "chain", "bush"]
)
def test_texts_come_as_often_as_the_model_says(
    speculation: SpeculationParams, temperature: float
) -> None:
    counts = sample(speculation, temperature)
    assert excess(counts, truth(toy(), temperature)) < 1


def test_typical_acceptance_does_not_keep_the_distribution() -> None:
    counts = sample(medusa(BUSH, acceptance="typical"), 1.0)
    assert excess(counts, truth(toy(), 1.0)) > 3


def test_a_second_chance_for_the_drafts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has power: drawing again when no child holds the first draw must fail it."""

    def accept_eagerly(
        tree: DraftTree, draw: Callable[[int], int], is_last: Callable[[int, int], bool]
    ) -> Accepted:
        def draw_twice(node: int) -> int:
            token = draw(node)
            missed = tree.shape.children[node] and tree.child_with(node, token) is None
            return draw(node) if missed else token

        return accept_lossless(tree, draw_twice, is_last)

    monkeypatch.setattr("gorgon.engine.engine.accept_lossless", accept_eagerly)
    counts = sample(medusa(CHAIN), 1.0)
    assert excess(counts, truth(toy(), 1.0)) > 2
