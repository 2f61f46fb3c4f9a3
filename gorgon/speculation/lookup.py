"""Prompt lookup: a text that repeats itself drafts for free.

The longest earlier occurrence of what was written last is continued as it went on then (Saxena,
prompt lookup decoding, 2023). How often that is right depends on how long the match is, and is
measured: every step tells for one lookup whether it was right, drafted or not.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

_GRAMS = (4, 2)  # lengths under which occurrences are indexed, longest first
_MAX_MATCH = 16  # longer ones are as good
MAX_TOKENS = 16  # that a match continues with
# Match lengths that are counted together, by their smallest: 2, 3, 4, 5-7, 8-15, 16 and more.
_CLASSES = (2, 3, 4, 5, 8, 16)
_CLASS_OF = [max(bisect.bisect(_CLASSES, n) - 1, 0) for n in range(_MAX_MATCH + MAX_TOKENS)]
# Where counting starts, before a model has written anything.
_PRIOR = (0.10, 0.20, 0.30, 0.45, 0.60, 0.75)
_PRIOR_WEIGHT = 8.0
_MEMORY = 2000.0  # lookups after which older ones begin to fade


class Match(NamedTuple):
    """``length`` last tokens occurred before; ``tokens`` came after them."""

    length: int
    tokens: tuple[int, ...]


class Occurrences:
    """Where the n-grams of one growing text ended last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def match(self, text: Sequence[int]) -> Match | None:
        """The longest match of the end of ``text`` in what stands before.

        Args:
            text: the same text as before with tokens added.
        """
        self._index(text)
        for size in _GRAMS:
            end = self._ends.get(tuple(text[-size:])) if len(text) > size else None
            if end is not None:
                length = _match_length(text, end)
                return Match(length, tuple(text[end : end + MAX_TOKENS]))
        return None

    def _index(self, text: Sequence[int]) -> None:
        """Note every n-gram that something follows."""
        for end in range(self._indexed + 1, len(text)):
            for size in _GRAMS:
                if end >= size:
                    self._ends[tuple(text[end - size : end])] = end
        self._indexed = max(self._indexed, len(text) - 1)


class LookupSurvival:
    """How often a lookup's next token is right, by the length of the match."""

    def __init__(self) -> None:
        self._right = [p * _PRIOR_WEIGHT for p in _PRIOR]
        self._total = [_PRIOR_WEIGHT] * len(_PRIOR)
        self._rates = list(_PRIOR)

    def at(self, length: int) -> float:
        """Probability that the token after a match of ``length`` tokens comes."""
        return self._rates[_class_of(length)]

    def classes(self, match: Match) -> tuple[list[float], list[int]]:
        """How probable the tokens after ``match`` are: each makes the match longer by one.

        Returns:
            The probabilities that occur, and for each token which of them is its own.
        """
        first = _class_of(match.length)
        after = _CLASS_OF[match.length : match.length + len(match.tokens)]
        return self._rates[first:], [i - first for i in after]

    def learn(self, length: int, right: bool) -> None:
        """Count one lookup."""
        i = _class_of(length)
        self._right[i] += right
        self._total[i] += 1.0
        if self._total[i] > _MEMORY:
            self._right[i] *= 0.5
            self._total[i] *= 0.5
        self._rates[i] = self._right[i] / self._total[i]


def _match_length(text: Sequence[int], end: int) -> int:
    """How many tokens before ``end`` equal those at the end of ``text``."""
    earlier, last = text[max(0, end - _MAX_MATCH) : end], text[-_MAX_MATCH:]
    if earlier == last:
        return len(earlier)
    pairs = zip(reversed(earlier), reversed(last), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(earlier))


def _class_of(length: int) -> int:
    return _CLASS_OF[min(length, _MAX_MATCH)]
