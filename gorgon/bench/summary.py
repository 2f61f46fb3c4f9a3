"""What the measurements say: one row for each party and load, from the raw blocks alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gorgon.bench.document import Block, Document, Percentiles, Sample, StepShare, Workload
from gorgon.bench.statistics import Interval, paired_ratio, percentiles


@dataclass(frozen=True, slots=True)
class Row:
    """One party under one load; times in seconds, ratios against the baseline party.

    ``total_rate`` counts whole blocks (prompts included), ``stream_rate`` the median stream's
    tokens per second after its first token. ``goodput`` is answers per second that kept both
    latency bounds. ``same_text`` is the share of answers identical to the baseline's; None under
    sampling of a party that draws otherwise is not told apart.
    """

    party: str
    clients: int
    temperature: float
    num_answers: int
    tokens: int
    seconds: float
    total_rate: float
    stream_rate: float
    duration: Percentiles
    ttft: Percentiles
    tpot: Percentiles
    gaps: Percentiles
    goodput: float
    tokens_per_step: float | None
    accepted_share: float | None
    speedup: Interval
    stream_speedup: Interval
    same_text: float
    joules_per_token: float | None
    step_share: StepShare | None


def summarise(document: Document) -> list[Row]:
    """All rows, loads in the order of the run, the baseline first within each."""
    rows = []
    baseline = document.parties[0].name
    for temperature in document.workload.temperatures:
        for clients in document.workload.clients:
            bases = document.blocks_of(baseline, clients, temperature)
            for party in document.parties:
                blocks = document.blocks_of(party.name, clients, temperature)
                if blocks:
                    rows.append(make_row(blocks, bases, document.workload))
    return rows


def make_row(blocks: Sequence[Block], bases: Sequence[Block], workload: Workload) -> Row:
    """One row from the blocks of one cell and those of the baseline beside them."""
    first, samples = blocks[0], samples_of(blocks)
    seconds = sum(block.seconds for block in blocks)
    tokens = sum(sample.tokens for sample in samples)
    tpot = [sample.tpot for sample in samples if sample.tpot]
    steps = [sample for sample in samples if sample.steps]
    drafted = sum(sample.drafted or 0 for sample in samples)
    good = sum(is_good(sample, workload) for sample in samples)
    joules = [block.energy_joules for block in blocks if block.energy_joules is not None]
    num_steps = sum(sample.steps or 0 for sample in steps)
    return Row(
        party=first.party,
        clients=first.clients,
        temperature=first.temperature,
        num_answers=len(samples),
        tokens=tokens,
        seconds=seconds,
        total_rate=tokens / seconds,
        stream_rate=1 / percentiles(tpot)["p50"] if tpot else 0.0,
        duration=percentiles([sample.duration for sample in samples]),
        ttft=percentiles([sample.ttft for sample in samples]),
        tpot=percentiles(tpot),
        gaps=mean_percentiles([block.gaps for block in blocks]),
        goodput=good / seconds,
        tokens_per_step=sum(s.tokens for s in steps) / num_steps if num_steps else None,
        accepted_share=sum(s.accepted or 0 for s in samples) / drafted if drafted else None,
        speedup=speedup(blocks, bases),
        stream_speedup=stream_speedup(blocks, bases),
        same_text=same_text(blocks, bases),
        joules_per_token=sum(joules) / tokens if joules else None,
        step_share=mean_share([block.step_share for block in blocks if block.step_share]),
    )


def samples_of(blocks: Iterable[Block]) -> list[Sample]:
    """The answers of all blocks."""
    return [sample for block in blocks for sample in block.samples]


def is_good(sample: Sample, workload: Workload) -> bool:
    """Whether an answer kept the latency bounds."""
    return sample.ttft <= workload.ttft_bound and (sample.tpot or 0.0) <= workload.tpot_bound


def pairs(blocks: Sequence[Block], bases: Sequence[Block]) -> list[tuple[Block, Block]]:
    """Blocks of the same round."""
    by_key = {base.key: base for base in bases}
    return [(block, by_key[block.key]) for block in blocks if block.key in by_key]


def speedup(blocks: Sequence[Block], bases: Sequence[Block]) -> Interval:
    """Tokens per second, prompts included, against the baseline."""
    found = pairs(blocks, bases)
    return paired_ratio(
        [block.tokens / block.seconds for block, _ in found],
        [base.tokens / base.seconds for _, base in found],
        [block.group for block, _ in found],
    )


def stream_speedup(blocks: Sequence[Block], bases: Sequence[Block]) -> Interval:
    """Tokens per second of a stream after its first token, against the baseline."""
    found = [(a, b) for a, b in pairs(blocks, bases) if stream_rate(a) and stream_rate(b)]
    if not found:
        return Interval(1.0, 0.0, float("inf"), 0)
    return paired_ratio(
        [stream_rate(block) for block, _ in found],
        [stream_rate(base) for _, base in found],
        [block.group for block, _ in found],
    )


def stream_rate(block: Block) -> float:
    """Further tokens of all streams over the sum of their times; 0 if there were none."""
    further = sum(sample.tokens - 1 for sample in block.samples)
    seconds = sum(sample.duration - sample.ttft for sample in block.samples)
    return further / seconds if seconds else 0.0


def category_speedup(document: Document, party: str, category: str) -> Interval | None:
    """Speed-up over the prompts of a category: one client, all temperatures; None without any."""
    values, bases, keys = [], [], []
    for temperature in document.workload.temperatures:
        own = document.blocks_of(party, 1, temperature)
        base = document.blocks_of(document.parties[0].name, 1, temperature)
        for block, other in pairs(own, base):
            if block.samples[0].category == category:
                values.append(block.tokens / block.seconds)
                bases.append(other.tokens / other.seconds)
                keys.append(f"{temperature} {block.group}")
    return paired_ratio(values, bases, keys) if values else None


def categories(document: Document) -> list[str]:
    """In the order of their first answer... of all blocks, sorted."""
    return sorted({sample.category for block in document.blocks for sample in block.samples})


def same_text(blocks: Sequence[Block], bases: Sequence[Block]) -> float:
    """Share of answers whose text is identical to the baseline's."""
    same = total = 0
    for block, base in pairs(blocks, bases):
        for own, other in zip(block.samples, base.samples, strict=True):
            same += own.digest == other.digest
            total += 1
    return same / total if total else 0.0


def accepted_by_depth(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """(drafted, accepted) at depth 1, 2 ...; empty where the party does not tell."""
    found: list[tuple[int, int]] = []
    for sample in samples_of(blocks):
        depths = zip(sample.drafted_by_depth, sample.accepted_by_depth, strict=False)
        for i, (drafted, accepted) in enumerate(depths):
            if i == len(found):
                found.append((0, 0))
            found[i] = (found[i][0] + drafted, found[i][1] + accepted)
    return found


def accepted_by_source(blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    """(drafted, accepted) of each source of drafts."""
    found: dict[str, tuple[int, int]] = {}
    for sample in samples_of(blocks):
        for source, drafted in sample.drafted_by_source.items():
            known = found.get(source, (0, 0))
            accepted = sample.accepted_by_source.get(source, 0)
            found[source] = (known[0] + drafted, known[1] + accepted)
    return found


def mean_percentiles(found: Sequence[Percentiles]) -> Percentiles:
    """The mean over blocks of each percentile."""
    filled = [each for each in found if each]
    if not filled:
        return {}
    return {name: sum(each[name] for each in filled) / len(filled) for name in filled[0]}


def mean_share(found: Sequence[StepShare]) -> StepShare | None:
    """The mean over blocks of each percentile of where steps spent their time."""
    if not found:
        return None
    return StepShare(
        num_steps=sum(share.num_steps for share in found),
        total=mean_percentiles([share.total for share in found]),
        model=mean_percentiles([share.model for share in found]),
        heads=mean_percentiles([share.heads for share in found]),
        outside=mean_percentiles([share.outside for share in found]),
    )
