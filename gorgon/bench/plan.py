"""Who is asked what in which order: everybody the same prompts, in turns, block by block."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gorgon.bench.answer import Load
from gorgon.bench.document import Workload
from gorgon.bench.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Round:
    """One group of prompts that every party answers, one after the other."""

    key: str
    group: str
    prompts: tuple[Prompt, ...]
    load: Load

    @property
    def max_tokens(self) -> int:
        """New tokens of one party's block, at most."""
        return sum(self.load.length_of(prompt) for prompt in self.prompts)


def make_rounds(prompts: Sequence[Prompt], workload: Workload) -> Iterator[Round]:
    """All rounds of a run.

    With one client a round is one prompt, else ``waves`` prompts for each client; the last round
    is filled up from the beginning. Every repeat shuffles the prompts anew.
    """
    for temperature in workload.temperatures:
        for clients in workload.clients:
            load = Load(
                clients,
                workload.length,
                workload.natural,
                temperature,
                workload.seed,
                workload.spread,
            )
            size = 1 if clients == 1 else clients * workload.waves
            for repeat in range(workload.repeats):
                order = _shuffled(prompts, workload.seed + repeat)
                for first in range(0, len(order), size):
                    picked = tuple(order[(first + i) % len(order)] for i in range(size))
                    group = "+".join(sorted(prompt.id for prompt in picked))
                    yield Round(f"{repeat}:{group}", group, picked, load)


def _shuffled(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    order = list(prompts)
    random.Random(seed).shuffle(order)
    return order


def turn_order(count: int, number: int) -> list[int]:
    """Which party goes when in round ``number``: each goes first, second ... equally often."""
    return [(number + i) % count for i in range(count)]
