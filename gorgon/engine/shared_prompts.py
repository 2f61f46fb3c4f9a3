"""Running requests whose prompts begin alike: the first computes it, the others take it over.

    leader    p p p p p p | p p p       computes all of its prompt
    follower  p p p p p p | q q         takes over the cells of what both share, then goes on

A leader comes before its followers in order of admission, so nobody waits in a circle. Knows
running requests; finished ones are the prefix cache's.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from gorgon.engine.pool import SequencePool
from gorgon.engine.prefixes import common_length
from gorgon.engine.sequence import Sequence

WORTH_SHARING = 16  # tokens; for fewer nobody waits a step


class SharedPrompts:
    """Who follows whom among ``running``, which is in order of admission."""

    def __init__(self, running: Seq[Sequence], pool: SequencePool) -> None:
        self._running, self._pool = running, pool

    def follow(self, sequence: Sequence) -> None:
        """Find whoever shares most of what ``sequence`` has yet to compute, if it is worth it."""
        sequence.leader, sequence.num_shared = None, 0
        if not sequence.request.reuse_prefix:
            return
        wanted = np.asarray(sequence.request.prompt_ids[:-1], np.int32)  # the last is the root
        least = sequence.num_computed + WORTH_SHARING
        for other in self._running:
            if other is sequence:
                break
            length = common_length(np.asarray(other.request.prompt_ids, np.int32), wanted)
            if length >= least:
                sequence.leader, sequence.num_shared, least = other, length, length + 1

    def take_over(self) -> None:
        """Give all followers what their leaders have computed since."""
        for sequence in self._running:
            if sequence.leader is not None:
                self._pool.adopt(sequence, sequence.leader, sequence.num_shared)
                if sequence.num_computed >= sequence.num_shared:
                    sequence.leader = None

    def leave(self, leader: Sequence, is_sound: bool) -> None:
        """``leader`` ends: its followers take what is there if it is sound, and look again."""
        for sequence in self._running:
            if sequence.leader is leader:
                if is_sound:
                    self._pool.adopt(sequence, leader, sequence.num_shared)
                self.follow(sequence)
