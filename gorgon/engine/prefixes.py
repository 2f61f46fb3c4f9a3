"""Finished requests' tokens whose cells are still in the KV cache, for requests to come.

Knows token ids, cells and sequence ids; the pool does the work in llama.cpp.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens [n] with their cells [n], held by sequence ``id``."""

    id: int
    tokens: npt.NDArray[np.int32]
    cells: list[int]


class PrefixCache:
    """Prefixes by sequence id, the least recently used first."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[int, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes.values())

    def add(self, prefix: Prefix) -> None:
        """Add ``prefix`` as the most recently used."""
        self._prefixes[prefix.id] = prefix

    def remove(self, prefix: Prefix) -> None:
        """Forget ``prefix``; its cells are the caller's to free."""
        del self._prefixes[prefix.id]

    def touch(self, prefix: Prefix) -> None:
        """Make ``prefix`` the most recently used."""
        self._prefixes.move_to_end(prefix.id)

    def oldest(self) -> Prefix | None:
        """The least recently used one."""
        return next(iter(self._prefixes.values()), None)

    def longest(self, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
        """The prefix that shares most leading tokens with ``tokens``, and how many.

        Of several the most recently used: a system prompt that all share keeps no old one alive.
        """
        wanted = np.asarray(tokens, np.int32)
        best, best_length = None, 0
        for prefix in self:
            length = common_length(prefix.tokens, wanted)
            if length >= max(best_length, 1):
                best, best_length = prefix, length
        return best, best_length

    def covered_by(self, tokens: Sequence[int]) -> list[Prefix]:
        """Prefixes that ``tokens`` begin with, and so are of no more use beside them."""
        wanted = np.asarray(tokens, np.int32)
        return [p for p in self if common_length(p.tokens, wanted) == len(p.tokens)]


def common_length(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many leading elements ``a`` and ``b`` share."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
