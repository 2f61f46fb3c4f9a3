"""Ranked guesses below one node of a tree, and what is guessed below each of them in turn.

Rows are made when they are asked for: most of what heads guess is never looked at. Knows neither
trees nor survival.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence
from typing import NamedTuple

from gorgon.backend import Level
from gorgon.speculation.survival import Correction, correctable
from gorgon.speculation.tree import Source


class Row:
    """Guesses of the heads, likeliest first.

    One that states probability p has ``p / (p + (1 - p) odds)``, see ``Correction``.
    """

    __slots__ = ("odds", "stated", "tokens")

    def __init__(self, tokens: list[int], stated: list[float], odds: float) -> None:
        self.tokens, self.stated, self.odds = tokens, stated, odds

    def first(self, count: int) -> list[float]:
        """The probabilities of the likeliest guesses."""
        return [p / (p + (1.0 - p) * self.odds) for p in self.stated[:count]]

    def source(self, _token: int) -> Source:
        """Who guesses ``token``."""
        return Source.HEADS

    def below(self, _token: int) -> Row | None:
        """What is guessed below ``token``, if anything is."""
        return None


class IndependentRow(Row):
    """Guesses of independent heads: those below a token do not depend on it.

    Args:
        tokens: ranked guesses by depth.
        stated: their probabilities.
        correction: of what the heads state.
        num_depths: how deep the tree may be.
        depth: of this row, from 1.
    """

    __slots__ = ("_below", "_correction", "_depth", "_levels", "_num_depths")

    def __init__(
        self,
        tokens: Sequence[list[int]],
        stated: Sequence[list[float]],
        correction: Correction,
        num_depths: int,
        depth: int = 1,
    ) -> None:
        super().__init__(tokens[depth - 1], correctable(stated[depth - 1]), correction.odds(depth))
        self._levels, self._correction = (tokens, stated), correction
        self._depth, self._num_depths = depth, min(num_depths, len(tokens))
        self._below: IndependentRow | None = None

    def below(self, _token: int) -> Row | None:
        """See ``Row``."""
        if self._below is None and self._depth < self._num_depths:
            tokens, stated = self._levels
            self._below = IndependentRow(
                tokens, stated, self._correction, self._num_depths, self._depth + 1
            )
        return self._below


class Searched(NamedTuple):
    """One level of a search as lists, and its rows by the row above and the token between."""

    tokens: list[list[int]]
    stated: list[list[float]]
    rows: dict[tuple[int, int], int]


def searched(level: Level) -> Searched:
    """``level`` as lists."""
    keys = zip(level.parents.tolist(), level.tokens.tolist(), strict=True)
    guesses = level.guesses
    tokens, stated = guesses.tokens[:, 0].tolist(), guesses.probs[:, 0].tolist()
    return Searched(tokens, stated, {key: row for row, key in enumerate(keys)})


class SearchedRow(Row):
    """Guesses of a search, which went on below some tokens of each row.

    Args:
        levels: all that was found.
        row: of this one in its level.
        correction: of what the heads state.
        num_depths: how deep the tree may be.
        depth: of the level, from 1.
    """

    __slots__ = ("_correction", "_depth", "_levels", "_num_depths", "_row")

    def __init__(
        self,
        levels: Sequence[Searched],
        row: int,
        correction: Correction,
        num_depths: int,
        depth: int = 1,
    ) -> None:
        level = levels[depth - 1]
        super().__init__(level.tokens[row], correctable(level.stated[row]), correction.odds(depth))
        self._levels, self._row, self._correction = levels, row, correction
        self._depth, self._num_depths = depth, min(num_depths, len(levels))

    def below(self, token: int) -> Row | None:
        """See ``Row``."""
        depth = self._depth
        if depth == self._num_depths:
            return None
        row = self._levels[depth].rows.get((self._row, token))
        if row is None:
            return None
        return SearchedRow(self._levels, row, self._correction, self._num_depths, depth + 1)


class Chain(NamedTuple):
    """Tokens below each other, each with its probability once the one before has come."""

    tokens: Sequence[int]
    probs: Sequence[float]


class ChainedRow(Row):
    """The guesses of the heads, if there are any, and the next token of a chain among them.

    What both name fails to come only where both are wrong: they are taken as independent evidence.
    """

    __slots__ = ("_chain", "_heads", "_place", "_source")

    def __init__(self, heads: Row | None, chain: Chain, place: int = 0) -> None:
        token, prob = chain.tokens[place], chain.probs[place]
        tokens = [] if heads is None else list(heads.tokens)
        probs = [] if heads is None else heads.first(len(tokens))
        self._source = Source.LOOKUP
        if token in tokens:
            self._source, rank = Source.BOTH, tokens.index(token)
            del tokens[rank]
            prob = 1.0 - (1.0 - prob) * (1.0 - probs.pop(rank))
        rank = bisect.bisect_right(probs, -prob, key=operator.neg)
        tokens.insert(rank, token)
        probs.insert(rank, prob)
        super().__init__(tokens, probs, 1.0)
        self._heads, self._chain, self._place = heads, chain, place

    def source(self, token: int) -> Source:
        """See ``Row``."""
        return self._source if token == self._chain.tokens[self._place] else Source.HEADS

    def below(self, token: int) -> Row | None:
        """See ``Row``."""
        source, after = self.source(token), self._place + 1
        heads = None if source is Source.LOOKUP or self._heads is None else self._heads.below(token)
        if source is Source.HEADS or after == len(self._chain.tokens):
            return heads
        return ChainedRow(heads, self._chain, after)
