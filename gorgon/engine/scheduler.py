"""Who runs in the next step: admission in order of arrival, prompts in chunks.

A request is admitted when its prompt, its longest possible answer and one tree fit into the
cache beside what the running ones may still need; then it can never be starved of cells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gorgon.backend import Backend
from gorgon.config import EngineSettings
from gorgon.engine.sequence import Sequence
from gorgon.errors import QueueFullError, RequestError
from gorgon.request import Request
from gorgon.speculation.tree import TreeShape

MIN_TREE_CELLS = 8  # kept free for the tree of a request that leaves its shape to the drafter


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue."""

    request: Request
    shape: TreeShape | None
    arrived_at: float

    @property
    def num_tree_cells(self) -> int:
        """Cells kept free for its tree."""
        return MIN_TREE_CELLS if self.shape is None else len(self.shape)

    @property
    def num_cells(self) -> int:
        """Cells that it may count on: prompt, longest answer, a tree."""
        return len(self.request.prompt_ids) + self.request.max_tokens + self.num_tree_cells


@dataclass(slots=True)
class Plan:
    """One step: prompt tokens to catch up on, and sequences that decode afterwards."""

    prompts: list[tuple[Sequence, int]] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Queue and running set."""

    def __init__(self, backend: Backend, settings: EngineSettings) -> None:
        self._backend, self._settings = backend, settings
        self.waiting: deque[Waiting] = deque()
        self.running: list[Sequence] = []
        self._reserved: dict[str, int] = {}

    def enqueue(self, waiting: Waiting) -> None:
        """Add a request to the queue.

        Raises:
            RequestError: when it can never be served.
            QueueFullError: when the queue is full.
        """
        self._check_fits(waiting)
        known = {w.request.id for w in self.waiting} | self._reserved.keys()
        assert waiting.request.id not in known, "request ids are unique"
        if len(self.waiting) >= self._settings.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting; try again later")
        self.waiting.append(waiting)

    def _check_fits(self, waiting: Waiting) -> None:
        request = waiting.request
        length = len(request.prompt_ids) + request.max_tokens
        limit = min(self._backend.max_position, self._backend.num_cells - waiting.num_tree_cells)
        if len(request.prompt_ids) >= limit:
            raise RequestError(
                f"prompt has {len(request.prompt_ids)} tokens, the context holds {limit}; "
                "shorten it",
                field="prompt",
            )
        if length > limit:
            raise RequestError(
                f"prompt ({len(request.prompt_ids)} tokens) and max_length "
                f"({request.max_tokens}) exceed the context of {limit}; "
                f"max_length can be at most {limit - len(request.prompt_ids)}",
                field="max_length",
            )

    def admit(self, make: Callable[[Waiting], Sequence]) -> None:
        """Start waiting requests, first come first served, as long as they fit."""
        while self.waiting and len(self.running) < self._settings.max_running:
            needed = self.waiting[0].num_cells
            if sum(self._reserved.values()) + needed > self._backend.num_cells:
                return
            waiting = self.waiting.popleft()
            self._reserved[waiting.request.id] = needed
            self.running.append(make(waiting))

    @property
    def num_draft_cells(self) -> int:
        """Cells that the drafts of one step may take: what no request needs for its answer."""
        answers = sum(len(s.request.prompt_ids) + s.request.max_tokens for s in self.running)
        return self._backend.num_cells - answers

    def plan(self) -> Plan:
        """Prompt chunks in order of admission up to the step's budget, then who can decode.

        Who follows another request has neither until that one has computed what both share.
        """
        plan = Plan()
        idle = all(sequence.num_behind > 1 for sequence in self.running)
        budget = self._settings.prefill_batch if idle else self._settings.prefill_chunk
        for sequence in self.running:
            if sequence.leader is not None:
                continue
            behind = sequence.num_behind - 1
            count = min(behind, budget)
            if count > 0:
                plan.prompts.append((sequence, count))
                budget -= count
            if count == behind:
                plan.decoding.append(sequence)
        return plan

    def finish(self, sequence: Sequence) -> None:
        """Take a request out of the running set."""
        self.running.remove(sequence)
        del self._reserved[sequence.request.id]

    def drop_older(self, arrived_before: float) -> list[Waiting]:
        """Take requests out of the queue that arrived before a time; those taken out."""
        dropped = [w for w in self.waiting if w.arrived_at < arrived_before]
        for waiting in dropped:
            self.waiting.remove(waiting)
        return dropped

    def drop_waiting(self, request_id: str) -> bool:
        """Take a request out of the queue; whether it was there."""
        for waiting in self.waiting:
            if waiting.request.id == request_id:
                self.waiting.remove(waiting)
                return True
        return False
