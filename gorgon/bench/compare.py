"""Two documents side by side: what became faster, what slower."""

from __future__ import annotations

from dataclasses import dataclass

from gorgon.bench.document import Document
from gorgon.bench.report import table
from gorgon.bench.statistics import Interval, paired_ratio
from gorgon.bench.summary import make_row
from gorgon.errors import BenchError


@dataclass(frozen=True, slots=True)
class Change:
    """New over old tokens/s of one party under one load, and the speed-ups over the baseline."""

    party: str
    clients: int
    temperature: float
    rate: Interval
    old_speedup: Interval
    new_speedup: Interval
    tokens_per_step: tuple[float | None, float | None]

    def is_regression(self, tolerance: float) -> bool:
        """Whether it is slower beyond doubt and by more than ``tolerance`` (0.03 is 3 %)."""
        return self.rate.high < 1.0 and self.rate.value < 1.0 - tolerance


def compare(old: Document, new: Document) -> list[Change]:
    """Changes of every party and load that both documents have, paired by prompts.

    Raises:
        BenchError: when there is nothing to compare.
    """
    changes = [
        change
        for temperature in new.workload.temperatures
        for clients in new.workload.clients
        for party in new.parties
        if (change := _change(old, new, party.name, clients, temperature)) is not None
    ]
    if not changes:
        raise BenchError("the two results have no party, load and prompts in common")
    return changes


def _change(
    old: Document, new: Document, party: str, clients: int, temperature: float
) -> Change | None:
    before = {block.key: block for block in old.blocks_of(party, clients, temperature)}
    after = new.blocks_of(party, clients, temperature)
    shared = [(before[block.key], block) for block in after if block.key in before]
    if not shared:
        return None
    rows = [
        make_row(
            document.blocks_of(party, clients, temperature),
            document.blocks_of(document.parties[0].name, clients, temperature),
            document.workload,
        )
        for document in (old, new)
    ]
    return Change(
        party=party,
        clients=clients,
        temperature=temperature,
        rate=paired_ratio(
            [block.tokens / block.seconds for _, block in shared],
            [block.tokens / block.seconds for block, _ in shared],
            [block.group for block, _ in shared],
        ),
        old_speedup=rows[0].speedup,
        new_speedup=rows[1].speedup,
        tokens_per_step=(rows[0].tokens_per_step, rows[1].tokens_per_step),
    )


def describe(old: Document, new: Document, changes: list[Change], tolerance: float) -> str:
    """The comparison in Markdown."""
    parts = [
        f"old: {old.created}, {_where(old)}; new: {new.created}, {_where(new)}",
        *_warnings(old, new),
        table(
            [
                *("party", "clients", "temperature", "new / old tokens/s"),
                *("speed-up old", "new", "tokens/step old", "new", ""),
            ],
            [_cells(change, tolerance) for change in changes],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _where(document: Document) -> str:
    return f"{document.machine.cpu}, {document.machine.num_cores} cores"


def _warnings(old: Document, new: Document) -> list[str]:
    """What makes the two hard to compare."""
    found = []
    if old.machine.model_dump(exclude={"python"}) != new.machine.model_dump(exclude={"python"}):
        found.append("**Different machines**: look at the speed-ups, not at tokens/s.")
    ignored = {"clients", "temperatures", "repeats", "ttft_bound", "tpot_bound"}
    if old.workload.model_dump(exclude=ignored) != new.workload.model_dump(exclude=ignored):
        found.append("**Different workloads**: only rounds with the same prompts are compared.")
    return found


def _cells(change: Change, tolerance: float) -> list[str]:
    verdict = "slower" if change.is_regression(tolerance) else ""
    if change.rate.low > 1.0 and change.rate.value > 1.0 + tolerance:
        verdict = "faster"
    steps = ["-" if value is None else f"{value:.2f}" for value in change.tokens_per_step]
    return [
        *(change.party, str(change.clients), f"{change.temperature:g}", str(change.rate)),
        *(str(change.old_speedup), str(change.new_speedup), *steps, verdict),
    ]
