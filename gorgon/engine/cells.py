"""A ledger of KV cells: who holds how many, so that nothing leaks and admission can be exact.

Mirrors llama.cpp's cache by count, not by place: a cell here is a number with a count of holders
(requests, cached prefixes, the trash). llama.cpp frees a cell when its last sequence leaves it,
we free the number when its last holder does.
"""

from __future__ import annotations

from collections.abc import Iterable


class Cells:
    """``capacity`` cells, all free at first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._holders = [0] * capacity

    @property
    def num_free(self) -> int:
        """Cells that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Cells that somebody holds."""
        return self.capacity - len(self._free)

    def take(self, count: int) -> list[int]:
        """``count`` free cells, held once."""
        assert count <= len(self._free), f"{count} cells wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for cell in taken:
            self._holders[cell] = 1
        return taken

    def share(self, cells: Iterable[int]) -> None:
        """One more holder for each of ``cells``."""
        for cell in cells:
            assert self._holders[cell] > 0
            self._holders[cell] += 1

    def drop(self, cells: Iterable[int]) -> None:
        """One holder less for each of ``cells``; free when none is left."""
        for cell in cells:
            assert self._holders[cell] > 0
            self._holders[cell] -= 1
            if self._holders[cell] == 0:
                self._free.append(cell)

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Assert that ``holders`` are all that hold cells."""
        counts = [0] * self.capacity
        for cells in holders:
            for cell in cells:
                counts[cell] += 1
        assert counts == self._holders, "cells are held by nobody known"
        assert sorted(self._free) == [c for c, n in enumerate(counts) if n == 0]
