"""From what a graph gives to ranked guesses: order, token ids, calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Guesses, Ints, Level
from gorgon.llama.heads_file import Knots


class Ranking:
    """Ranks the best outputs of each head.

    Args:
        token_map: token id of each output; None where outputs are token ids.
        calibration: from raw probability to survival by depth; empty for none.
    """

    def __init__(self, token_map: Ints | None, calibration: tuple[Knots, ...]) -> None:
        self._token_map, self._calibration = token_map, calibration
        self._offsets: npt.NDArray[np.intp] = np.zeros((0, 1), np.intp)

    def __call__(
        self, outputs: Ints | Floats, probs: Floats, depth: int, states: Floats | None = None
    ) -> Guesses:
        """Guesses for depth ``depth`` and those below.

        Args:
            outputs: shape [rows, depths, top_k], in any order.
            probs: their raw probabilities, same shape.
            depth: of the first one, from 1.
            states: passed on.
        """
        top_k = probs.shape[-1]
        order = np.negative(probs).reshape(-1, top_k).argsort(kind="stable")
        order += self._offsets_for(len(order), top_k)
        ids = outputs.take(order).astype(np.int32, copy=False)
        ranked = probs.take(order).reshape(probs.shape)
        for i in range(probs.shape[1] if self._calibration else 0):
            knots = self._calibration[depth - 1 + i]
            ranked[:, i] = np.interp(ranked[:, i], knots.x, knots.y)
        return Guesses(self.tokens(ids).reshape(outputs.shape), ranked, states)

    def tokens(self, outputs: Ints) -> Ints:
        """The token ids of ``outputs``."""
        return outputs if self._token_map is None else self._token_map.take(outputs)

    def _offsets_for(self, rows: int, top_k: int) -> npt.NDArray[np.intp]:
        if len(self._offsets) < rows:
            self._offsets = np.arange(0, rows * top_k, top_k, dtype=np.intp)[:, None]
        return self._offsets[:rows]


def merged(pieces: list[Guesses]) -> Guesses:
    """The guesses of several graphs as one, rows in order."""
    if len(pieces) == 1:
        return pieces[0]
    states = [piece.states for piece in pieces if piece.states is not None]
    return Guesses(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
        np.concatenate(states) if states else None,
    )


def joined(found: list[list[Level]]) -> list[Level]:
    """The levels of several graphs as one, rows in order."""
    if len(found) == 1:
        return found[0]
    levels, rows_above = [], [len(search[0].tokens) for search in found]
    for depth in zip(*found, strict=True):
        starts = np.cumsum([0, *rows_above[:-1]]).astype(np.int32)
        parents = [level.parents + start for level, start in zip(depth, starts, strict=True)]
        guesses, tokens = (
            merged([level.guesses for level in depth]),
            [level.tokens for level in depth],
        )
        levels.append(Level(guesses, np.concatenate(parents), np.concatenate(tokens)))
        rows_above = [len(level.tokens) for level in depth]
    return levels
