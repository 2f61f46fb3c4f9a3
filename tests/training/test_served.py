"""Walking heads over answers: which drafts are tested, and where the next step begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gorgon.backend import Drafts, DraftState, Floats, Guesses, Ints, Level, Noted, Terms
from gorgon.training.corpus import Corpus
from gorgon.training.served import NUM_RANKS, calibrate, walk

GIVEN, LENGTH = 2, 12


def _corpus() -> Corpus:
    """Two texts that count: 100, 101 ... and 200, 201 ...; states hold their token."""
    tokens = np.concatenate([np.arange(100, 100 + LENGTH), np.arange(200, 200 + LENGTH)])
    states = np.repeat(tokens[:, None], 4, axis=1).astype(np.float16)
    states[[0, LENGTH]] = 0  # before the last prompt token
    return Corpus(
        tokens=tokens.astype(np.int32),
        best=np.zeros(2 * LENGTH, np.int32),
        states=states,
        starts=np.array([0, LENGTH, 2 * LENGTH]),
        given=np.array([GIVEN, GIVEN]),
        temperatures=np.zeros(2, np.float32),
        jobs=np.arange(2),
    )


class CountingHeads:
    """Guess the next number first, but below a token that 5 divides they name it fourth."""

    num_heads, top_k, size, searches, drafts, begins = 3, 6, 0, False, False, False

    def __init__(self, is_conditioned: bool) -> None:
        self.window = 1 if is_conditioned else 0
        self._is_conditioned = is_conditioned
        self.asked: list[DraftState] = []

    def propose(self, state: DraftState) -> Guesses:
        self.asked.append(state)
        roots = state.tokens[:, 0]
        if self._is_conditioned:
            return self._below(roots)
        levels = [self._below(roots + depth) for depth in range(self.num_heads)]
        return Guesses(
            np.concatenate([level.tokens for level in levels], 1),
            np.concatenate([level.probs for level in levels], 1),
        )

    def deepen(self, states: Floats, tokens: Ints, depth: int) -> Guesses:
        assert states[:, 0].tolist() == (tokens - 1).tolist()
        return self._below(tokens)

    def begin(self, state: DraftState) -> None:
        raise AssertionError("not asked for")

    def search(self, state: DraftState) -> list[Level]:
        raise AssertionError("not asked for")

    def draft(
        self, noted: Noted, hidden: int, ids: Sequence[int], tokens: Sequence[int], terms: Terms
    ) -> Drafts:
        raise AssertionError("not asked for")

    def close(self) -> None:
        pass

    def _below(self, tokens: Ints) -> Guesses:
        ranked = np.full((len(tokens), 1, self.top_k), 9, np.int32)
        ranks = np.where(tokens % 5 == 0, 3, 0)
        ranked[np.arange(len(tokens)), 0, ranks] = tokens + 1
        ranked_probs = np.array([0.5, 0.2, 0.1, 0.05, 0.02, 0.01], np.float32)
        probs = np.tile(ranked_probs, (len(tokens), 1, 1))
        states = np.repeat(tokens[:, None], 4, 1).astype(np.float32)
        return Guesses(ranked, probs, states if self._is_conditioned else None)


@pytest.mark.parametrize("is_conditioned", [True, False])
def test_levels_are_tested_below_drafts_that_came(is_conditioned: bool) -> None:
    heads = CountingHeads(is_conditioned)
    first, second, third = walk(heads, _corpus(), np.array([0]))
    # Roots 102, 106 (103 to 105 came, 105 is a root's last draft), 110 and none behind 111.
    assert [int(state.tokens[0, 0]) for state in heads.asked] == [102, 106, 110]
    assert first.came[:, 0].tolist() == [True, True, False]
    assert first.came[:, 3].tolist() == [False, False, True]
    assert first.came.shape == first.stated.shape == (3, NUM_RANKS)
    assert second.came[:, 0].tolist() == third.came[:, 0].tolist() == [True, True]


def test_heads_read_what_the_engine_gives_them() -> None:
    heads = CountingHeads(is_conditioned=True)
    walk(heads, _corpus(), np.array([0, 1]))
    state = heads.asked[0]
    assert state.tokens.tolist() == [[102, 101], [202, 201]]
    assert state.hidden[:, :, 0].tolist() == [[101, 0], [201, 0]]
    assert heads.asked[1].hidden[0, :, 0].tolist() == [105, 104]


def test_texts_are_told_apart_and_thin_depths_take_the_map_above() -> None:
    tested = walk(CountingHeads(is_conditioned=True), _corpus(), np.array([0, 1]))
    assert set(tested[0].texts.tolist()) == {0, 1}
    assert set(tested[0].of([1]).texts.tolist()) == {1}
    maps = calibrate(tested)
    assert len(maps) == 3
    assert maps[1] is maps[0]
    assert float(maps[0](0.5)) > 0.5


def test_nothing_tested_leaves_probabilities_as_they_are() -> None:
    nothing = walk(CountingHeads(is_conditioned=True), _corpus(), np.array([], np.int64))
    assert [float(knots(0.3)) for knots in calibrate(nothing)] == [pytest.approx(0.3)] * 3
