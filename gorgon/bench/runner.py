"""The run itself: warm-up, then every party in turns, round by round, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gorgon.bench.answer import Load, make_block
from gorgon.bench.document import Block, Workload
from gorgon.bench.machine import EnergyMeter
from gorgon.bench.party import Party
from gorgon.bench.plan import Round, make_rounds, turn_order
from gorgon.bench.prompts import Prompt

WARM_UP_TOKENS = 32


class Runner:
    """Collects blocks; ``client_core_share`` is what this process used while others answered."""

    def __init__(self, parties: Sequence[Party], console: Console) -> None:
        self.parties, self._console = parties, console
        self._busy = self._measured = 0.0

    @property
    def client_core_share(self) -> float:
        """Cores used by this process during the blocks so far."""
        return self._busy / self._measured if self._measured else 0.0

    def warm_up(self, prompts: Sequence[Prompt], workload: Workload) -> None:
        """Every party answers a few prompts that do not count, at the most clients there will be.

        The threads of a server and the kernels of a GPU are made at their first use.
        """
        for clients in sorted({1, max(workload.clients)}):
            length = min(WARM_UP_TOKENS, workload.length)
            load = Load(clients, length, workload.natural, workload.temperatures[0], workload.seed)
            asked = [prompts[i % len(prompts)] for i in range(clients)]
            for party in self.parties:
                party.run(asked, load)
                party.take_step_share()

    def run(self, prompts: Sequence[Prompt], workload: Workload) -> list[Block]:
        """All blocks, in the order in which they were measured."""
        rounds = list(make_rounds(prompts, workload))
        blocks: list[Block] = []
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with EnergyMeter() as meter, Progress(*columns, console=self._console) as progress:
            # Counted in tokens, so that the time left holds over different numbers of clients.
            total = sum(r.max_tokens for r in rounds) * len(self.parties)
            task = progress.add_task("tokens", total=total)
            for number, step in enumerate(rounds):
                for index in turn_order(len(self.parties), number):
                    party = self.parties[index]
                    progress.update(task, description=_describe(party, step))
                    blocks.append(self._measure(party, step, meter))
                    progress.advance(task, step.max_tokens)
        return blocks

    def _measure(self, party: Party, step: Round, meter: EnergyMeter) -> Block:
        joules, busy, began = meter.joules(), time.process_time(), time.perf_counter()
        answers = party.run(step.prompts, step.load)
        self._measured += time.perf_counter() - began
        self._busy += time.process_time() - busy
        used = meter.joules()
        spent = None if joules is None or used is None else max(0.0, used - joules)
        block = make_block(party.info.name, step.load, step.key, step.group, answers, spent)
        return block.model_copy(update={"step_share": party.take_step_share()})


def _describe(party: Party, step: Round) -> str:
    clients = step.load.clients
    return f"{party.info.name}, {clients} client{'s' if clients > 1 else ''}"
