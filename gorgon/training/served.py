"""How often what heads state comes true, as they are served: quantised, along drafted paths.

Walks over answers of the model with the heads in their file, as the engine does: a level is asked
about only below a draft that came, and the next step begins behind what was accepted. Knows no
PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gorgon.backend import DraftState, Guesses
from gorgon.llama.heads import Heads
from gorgon.training.calibration import Bools, Calibration, Floats, fit
from gorgon.training.corpus import Corpus, Longs

NUM_RANKS = 5  # guesses of a node that are counted
_NUM_DRAFTED = 3  # guesses of a node that are drafted
_MIN_TESTED = 200  # nodes of a depth


@dataclass(frozen=True, slots=True)
class Tested:
    """Guesses at one depth, below drafts that came.

    ``stated`` [n, NUM_RANKS] are their probabilities, ``came`` whether each was the token that
    came, ``texts`` [n] the text of each row.
    """

    stated: Floats
    came: Bools
    texts: Longs

    def of(self, texts: npt.ArrayLike) -> Tested:
        """Those of some texts."""
        some = np.isin(self.texts, texts)
        return Tested(self.stated[some], self.came[some], self.texts[some])

    def fit(self) -> Calibration:
        """The map from what is stated to what is measured."""
        return fit(self.stated.ravel(), self.came.ravel())


def walk(heads: Heads, corpus: Corpus, texts: Longs) -> list[Tested]:
    """What ``heads`` state about ``texts`` and what came of it, by depth.

    Args:
        heads: loaded from a file without calibration, to learn about raw probabilities.
        corpus: answers of the model that the heads were made for.
        texts: which of them.
    """
    found: list[list[Tested]] = [[] for _ in range(heads.num_heads)]
    last = corpus.starts[texts + 1] - 1
    at = corpus.starts[texts] + corpus.given[texts] - 1
    while len(left := np.flatnonzero(at + 2 <= last)):
        state = _draft_state(corpus, texts[left], at[left], heads.window)
        accepted = _test(heads, heads.propose(state), corpus, at[left], last[left], texts[left])
        for depth, tested in enumerate(accepted.tested):
            found[depth].append(tested)
        at[left] += 1 + accepted.counts
    return [_joined(parts) for parts in found]


def calibrate(tested: Sequence[Tested]) -> list[Calibration]:
    """One map a depth; a depth with too few samples gets that of the one above."""
    maps: list[Calibration] = []
    latest = Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    for depth in tested:
        if len(depth.texts) >= (_MIN_TESTED if maps else 1):
            latest = depth.fit()
        maps.append(latest)
    return maps


@dataclass(slots=True)
class _Step:
    """One step of all texts: drafts accepted in each, and what was tested at each depth."""

    counts: Longs
    tested: list[Tested]


def _test(
    heads: Heads, guesses: Guesses, corpus: Corpus, at: Longs, last: Longs, texts: Longs
) -> _Step:
    step = _Step(np.zeros(len(at), np.int64), [])
    rows, of = np.arange(len(at)), np.arange(len(at))  # texts that go on, their rows in guesses
    for depth in range(1, heads.num_heads + 1):
        level = depth - 1 if guesses.states is None else 0
        came = corpus.tokens[at[rows] + 1 + depth]
        right = guesses.tokens[of, level] == came[:, None]
        stated = guesses.probs[of, level, :NUM_RANKS].astype(np.float64)
        step.tested.append(Tested(stated, right[:, :NUM_RANKS], texts[rows]))
        drafted = right[:, :_NUM_DRAFTED].any(axis=1)
        step.counts[rows[drafted]] += 1
        goes_on = drafted & (at[rows] + 2 + depth <= last[rows])
        if depth == heads.num_heads or not goes_on.any():
            break
        rows, of = rows[goes_on], of[goes_on]
        if guesses.states is not None:
            guesses = heads.deepen(guesses.states[of], came[goes_on].astype(np.int32), depth + 1)
            of = np.arange(len(rows))
    return step


def _draft_state(corpus: Corpus, texts: Longs, at: Longs, window: int) -> DraftState:
    """What the engine would hand to the heads at positions ``at``."""
    before = at[:, None] - np.arange(window + 1)
    known = before >= corpus.starts[texts][:, None]
    before = np.maximum(before, 0)
    hidden = np.asarray(corpus.states[before], np.float32) * known[..., None]
    earlier = np.where(known, corpus.tokens[before], 0)[:, :window]
    tokens = np.concatenate([corpus.tokens[at + 1][:, None], earlier], axis=1)
    return DraftState(hidden, tokens.astype(np.int32))


def _joined(parts: list[Tested]) -> Tested:
    return Tested(
        np.concatenate([np.zeros((0, NUM_RANKS)), *(part.stated for part in parts)]),
        np.concatenate([np.zeros((0, NUM_RANKS), bool), *(part.came for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.texts for part in parts)]),
    )
