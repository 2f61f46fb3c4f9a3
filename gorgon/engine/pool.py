"""Sequence ids and KV cells: who gets them, how trees lie on them, what stays after a step.

The pool owns every id and every cell of a backend:

    ids     0: trash   then main ids and side ids of running requests, ids of cached prefixes
    cells   running requests | cached prefixes | trash | free

Order matters: attention sums over cells in the order in which they lie, and llama.cpp fills holes
first, so a freed cell in the middle lets later tokens lie before earlier ones and moves logits by
rounding. A rejected cell that lies before a kept one is therefore parked in the trash, and the
trash is emptied when nobody runs or when it is large.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gorgon.backend import Backend, BatchRow
from gorgon.engine.cells import Cells
from gorgon.engine.prefixes import Prefix, PrefixCache
from gorgon.engine.sequence import Sequence, Side
from gorgon.speculation.tree import DraftTree, split

TRASH = 0


class Placement(NamedTuple):
    """Where one tree lies in a batch: its first row, the id of each branch."""

    sequence: Sequence
    tree: DraftTree
    first_row: int
    branch_ids: list[int]

    @property
    def start(self) -> int:
        """Position of the root."""
        return self.sequence.num_computed


class SequencePool:
    """All ids and cells of ``backend``.

    Args:
        backend: a backend with an empty cache.
        max_cached: cells that cached prefixes may keep.
        max_trash: rejected cells kept in place before the trash is emptied.
    """

    def __init__(self, backend: Backend, max_cached: int, max_trash: int) -> None:
        self._backend = backend
        self._max_cached, self._max_trash = max_cached, max_trash
        self.cells = Cells(backend.num_cells)
        self.prefixes = PrefixCache()
        self._trash: list[int] = []
        self._free_ids = list(range(backend.max_sequences - 1, TRASH, -1))
        self._running: list[Sequence] = []
        self._last_size, self._last_ids = 0, 0  # rows and ids of the last batch of trees

    @property
    def num_free_ids(self) -> int:
        """Sequence ids to be had, those of cached prefixes included."""
        return len(self._free_ids) + len(self.prefixes)

    @property
    def num_cached_cells(self) -> int:
        """Cells held by cached prefixes, shared ones counted once."""
        return len({cell for prefix in self.prefixes for cell in prefix.cells})

    @property
    def num_trash_cells(self) -> int:
        """Rejected cells kept in place."""
        return len(self._trash)

    # -- admission and release ------------------------------------------------------------------

    def acquire(self, prompt: tuple[int, ...], reuse: bool = True) -> tuple[int, list[int]]:
        """A main id for a request and, with ``reuse``, the cells of its longest cached prefix.

        At least one prompt token is left to compute, because its output is needed.
        """
        prefix, length = self.prefixes.longest(prompt[:-1] if reuse else ())
        if prefix is not None:
            self.prefixes.touch(prefix)
        if not self.num_free_ids:
            self._reclaim_side()
        sequence_id = self._take_id()
        if prefix is None or prefix not in self.prefixes:
            return sequence_id, []
        cells = prefix.cells[:length]
        self._backend.share(prefix.id, sequence_id, 0, length)
        self.cells.share(cells)
        return sequence_id, cells

    def adopt(self, sequence: Sequence, leader: Sequence, length: int) -> None:
        """Give ``sequence`` what ``leader`` has computed of the ``length`` tokens they share."""
        start, end = sequence.num_computed, min(leader.num_computed, length)
        if start < end:
            cells = leader.cells[start:end]
            self._backend.share(leader.id, sequence.id, start, end)
            self.cells.share(cells)
            sequence.cells += cells
            sequence.cached_tokens += len(cells)

    def start(self, sequence: Sequence) -> None:
        """Count ``sequence`` as running."""
        self._running.append(sequence)

    def release(self, sequence: Sequence, keep: bool) -> None:
        """End ``sequence``; with ``keep`` its tokens stay as a cached prefix."""
        self._running.remove(sequence)
        for side in sequence.sides:
            self._give_back(side.id)
        sequence.sides.clear()
        if keep and 0 < sequence.num_computed <= self._max_cached:
            self._cache(sequence)
        else:
            self._give_back(sequence.id)
            self.cells.drop(sequence.cells)
        if not self._running:
            self.empty_trash()

    def _cache(self, sequence: Sequence) -> None:
        tokens = np.asarray(sequence.tokens[: sequence.num_computed], np.int32)
        for prefix in self.prefixes.covered_by(sequence.tokens[: sequence.num_computed]):
            self._evict(prefix)
        self.prefixes.add(Prefix(sequence.id, tokens, sequence.cells))
        while self.num_cached_cells > self._max_cached and self._evict_oldest():
            pass

    # -- the step ---------------------------------------------------------------------------------

    def lay_out_prompt(self, sequence: Sequence, count: int) -> list[BatchRow]:
        """Rows for the next ``count`` known tokens of ``sequence``, whose cells it now holds."""
        start = sequence.num_computed
        self._make_room(count)
        sequence.cells += self.cells.take(count)
        tokens = sequence.tokens[start : start + count]
        return [BatchRow(t, start + i, (sequence.id,)) for i, t in enumerate(tokens)]

    def lay_out(
        self, trees: Iterable[tuple[Sequence, DraftTree]]
    ) -> tuple[list[BatchRow], list[Placement]]:
        """One batch of all trees: rows in node order, one sequence id per branch.

        A batch of as many rows as the last one gets as many ids, too, if it can: llama.cpp then
        keeps its graph, whose building costs up to a third of a step. The ids too many are
        branches of the first tree that end at its root.
        """
        trees = list(trees)
        size, num_ids = 0, 0
        for _, tree in trees:
            size += len(tree.tokens)
            num_ids += tree.shape.num_branches
        spare = self._last_ids - num_ids if size == self._last_size else 0
        spare = max(0, min(spare, len(self._free_ids) - num_ids))
        self._last_size, self._last_ids = size, num_ids + spare
        self._make_room(size)
        rows: list[BatchRow] = []
        placements = []
        for sequence, tree in trees:
            shape, start = tree.shape, len(sequence.cells)
            ids = self._branch_ids(sequence, shape.num_branches + spare)
            placements.append(Placement(sequence, tree, len(rows), ids))
            positions = [start + depth for depth in shape.depths]
            holders = [ids[on.start : on.stop] for on in shape.branches]
            holders[0] = ids
            rows += map(BatchRow, tree.tokens, positions, holders)
            spare = 0
        return rows, placements

    def commit(self, kept: list[tuple[Placement, tuple[int, ...]]]) -> None:
        """Keep the accepted path of every tree, park or free the rest.

        Args:
            kept: for each placement of a batch the nodes to keep, root first.
        """
        last_kept = -1
        if self._max_trash:
            last_kept = max(placement.first_row + path[-1] for placement, path in kept)
        for placement, path in kept:
            sequence, tree, first_row, ids = placement
            if first_row < last_kept:
                self._park(placement, path, last_kept - first_row)
            if len(path) < len(tree.tokens) or len(ids) > 1:
                self._cut(placement, path)
            sequence.cells += self.cells.take(len(path))
        if len(self._trash) > self._max_trash:
            self.empty_trash()

    def _park(self, placement: Placement, path: tuple[int, ...], last_kept: int) -> None:
        """Give the nodes before ``last_kept`` that are off ``path`` to the trash."""
        start, shape, ids = placement.start, placement.tree.shape, placement.branch_ids
        parked = [node for node in range(min(last_kept, len(shape))) if node not in path]
        for node in parked:
            position = start + shape.depths[node]
            self._backend.share(ids[shape.branches[node][0]], TRASH, position, position + 1)
        self._trash += self.cells.take(len(parked))

    def _cut(self, placement: Placement, path: tuple[int, ...]) -> None:
        """Take every branch off the nodes that are not on ``path``."""
        sequence, tree, _, ids = placement
        start, parts = sequence.num_computed, split(tree.shape, path)
        for branch in parts.cut:
            self._backend.remove(ids[branch], start + parts.common[branch])
        if parts.winner:
            first, end = start + parts.common[0], start + len(path)
            self._backend.share(ids[parts.winner], sequence.id, first, end)
        # ids beyond the tree's own branches hold the root alone
        lengths = itertools.chain(parts.common[1:], itertools.repeat(1))
        for side, length in zip(sequence.sides[: len(ids) - 1], lengths, strict=False):
            side.synced = start + length

    def undo(self, placements: Iterable[Placement]) -> None:
        """Free the cells of a batch that failed; its sequences must be released next."""
        for placement in placements:
            for sequence_id in placement.branch_ids:
                self._backend.remove(sequence_id, placement.start)

    # -- ids and cells ----------------------------------------------------------------------------

    def _branch_ids(self, sequence: Sequence, count: int) -> list[int]:
        """Main and side ids for ``count`` branches, all holding what the request has computed."""
        while len(sequence.sides) < count - 1:
            sequence.sides.append(Side(self._take_id()))
        for side in sequence.sides[: count - 1]:
            if side.synced < sequence.num_computed:
                self._backend.share(sequence.id, side.id, side.synced, sequence.num_computed)
                side.synced = sequence.num_computed
        return [sequence.id, *(side.id for side in sequence.sides[: count - 1])]

    def _take_id(self) -> int:
        if not self._free_ids:
            evicted = self._evict_oldest()
            assert evicted, "no sequence id left; the scheduler must not ask"
        return self._free_ids.pop()

    def _reclaim_side(self) -> None:
        """Free one id of the request that has most; between steps a side holds nothing of its own.

        A main id must always be had: the scheduler admits fewer requests than there are ids.
        """
        owner = max(self._running, key=lambda sequence: len(sequence.sides))
        self._give_back(owner.sides.pop().id)

    def reclaim_sides(self) -> None:
        """Free the side ids of all requests; they are shared anew with those that need them."""
        for sequence in self._running:
            for side in sequence.sides:
                self._give_back(side.id)
            sequence.sides.clear()

    def _give_back(self, sequence_id: int) -> None:
        self._backend.remove(sequence_id)
        self._free_ids.append(sequence_id)

    def _make_room(self, count: int) -> None:
        """See that ``count`` cells are free; a batch takes them in the cache, whatever is kept."""
        if self.cells.num_free < count:
            self.empty_trash()
        while self.cells.num_free < count and self._evict_oldest():
            pass
        assert self.cells.num_free >= count, "no cells left; the scheduler must not ask"

    def _evict_oldest(self) -> bool:
        prefix = self.prefixes.oldest()
        if prefix is not None:
            self._evict(prefix)
        return prefix is not None

    def _evict(self, prefix: Prefix) -> None:
        self.prefixes.remove(prefix)
        self._give_back(prefix.id)
        self.cells.drop(prefix.cells)

    def empty_trash(self) -> None:
        """Free the rejected cells that were kept in place."""
        if self._trash:
            self._backend.remove(TRASH)
            self.cells.drop(self._trash)
            self._trash.clear()

    def forget_prefixes(self) -> None:
        """Evict every cached prefix."""
        while self._evict_oldest():
            pass

    # -- proof ------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Assert that cells and ids used + free = total and that the backend agrees."""
        self.cells.check(
            [
                self._trash,
                *(sequence.cells for sequence in self._running),
                *(prefix.cells for prefix in self.prefixes),
            ]
        )
        held = {s.id: s.num_computed for s in self._running}
        held |= {side.id: side.synced for s in self._running for side in s.sides}
        held |= {prefix.id: len(prefix.tokens) for prefix in self.prefixes}
        ids = [TRASH, *held, *self._free_ids]
        assert sorted(ids) == list(range(self._backend.max_sequences)), "ids lost or held twice"
        for sequence_id, length in held.items():
            assert self._backend.last_position(sequence_id) == length - 1
        for sequence_id in self._free_ids:
            assert self._backend.last_position(sequence_id) == -1
        assert self._trash or self._backend.last_position(TRASH) == -1
