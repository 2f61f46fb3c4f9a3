"""The state of one running request: two counters, no phase.

    tokens      p p p p p p g g g | r        p prompt, g generated, r the root
    cells       c c c c c c c c c |          num_computed = len(cells)

A request decodes when exactly one known token is not computed yet: the root of its next tree.
With more than one it has prompt to catch up on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from gorgon.backend import Floats, Ints, Sampler
from gorgon.request import Request, RequestStats
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.tree import DraftTree, TreeShape


@dataclass(slots=True)
class Side:
    """A further sequence id of a request, for tree branches beside the main one.

    It holds the request's cells up to position ``synced``; it catches up when it is used.
    """

    id: int
    synced: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One admitted request.

    ``hidden``, shape [1 + window, num_embd], are the states after the final norm at the last
    computed positions, the latest first, zeros where they are not known; None before the first
    step. ``drafted`` holds the token of every node of ``shape`` but the root, as the heads guessed
    them after the root; None before the first step and in normal mode.
    """

    request: Request
    sampler: Sampler
    id: int
    shape: TreeShape
    admitted_at: float
    queue_time: float
    tokens: list[int]
    cells: list[int]
    cached_tokens: int = 0
    sides: list[Side] = field(default_factory=list)
    hidden: Floats | None = None
    drafted: tuple[int, ...] | None = None
    steps: int = 0
    num_drafted: int = 0
    drafted_by_depth: Counter[int] = field(default_factory=Counter)
    accepted_by_depth: Counter[int] = field(default_factory=Counter)
    prefill_time: float = 0.0
    decode_time: float = 0.0
    max_batch: int = 0

    @property
    def num_computed(self) -> int:
        """Tokens whose cells are in the cache."""
        return len(self.cells)

    @property
    def num_behind(self) -> int:
        """Known tokens that are not computed yet; 1 means ready to decode."""
        return len(self.tokens) - len(self.cells)

    @property
    def num_generated(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_remaining(self) -> int:
        """New tokens that may still come."""
        return self.request.max_tokens - self.num_generated

    def last_tokens(self, count: int) -> Ints:
        """The last ``count`` tokens, the latest first; 0 before the start of the text."""
        tokens = np.zeros(count, np.int32)
        known = self.tokens[: -count - 1 : -1]
        tokens[: len(known)] = known
        return tokens

    def push_hidden(self, latest: Floats, window: int) -> None:
        """Note the states of the positions computed last, shape [n, num_embd], latest first."""
        before = np.zeros_like(latest[:0]) if self.hidden is None else self.hidden
        hidden = np.zeros((1 + window, latest.shape[1]), np.float32)
        known = np.concatenate([latest, before])[: 1 + window]
        hidden[: len(known)] = known
        self.hidden = hidden

    def count(self, tree: DraftTree, accepted: Accepted) -> None:
        """Add one step to the statistics."""
        self.steps += 1
        self.num_drafted += len(tree) - 1
        for depth in tree.shape.depths[1:]:
            self.drafted_by_depth[depth] += 1
        for depth in range(1, len(accepted.path)):
            self.accepted_by_depth[depth] += 1

    def stats(self) -> RequestStats:
        """What the request cost so far."""
        depths = range(1, max(self.drafted_by_depth, default=0) + 1)
        return RequestStats(
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached_tokens,
            steps=self.steps,
            drafted=self.num_drafted,
            accepted=self.accepted_by_depth.total(),
            drafted_by_depth=tuple(self.drafted_by_depth[d] for d in depths),
            accepted_by_depth=tuple(self.accepted_by_depth[d] for d in depths),
            queue_time=self.queue_time,
            prefill_time=self.prefill_time,
            decode_time=self.decode_time,
            max_batch=self.max_batch,
        )
