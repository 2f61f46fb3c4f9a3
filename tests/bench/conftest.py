"""A small document with known answers."""

from __future__ import annotations

from gorgon.bench.document import Block, Document, Machine, PartyInfo, Sample, Workload

CATEGORIES = ("writing", "maths")


def make_sample(number: int, tokens: int = 21, seconds: float = 2.0) -> Sample:
    return Sample(
        prompt=f"p{number}",
        category=CATEGORIES[number % 2],
        prompt_tokens=10,
        tokens=tokens,
        ttft=0.1,
        duration=seconds,
        tpot=(seconds - 0.1) / (tokens - 1),
        digest=f"text {number}",
        steps=10,
        drafted=20,
        accepted=11,
        drafted_by_depth=[10, 10],
        accepted_by_depth=[7, 4],
        drafted_by_source={"heads": 20},
        accepted_by_source={"heads": 11},
    )


def make_blocks(party: str, clients: int, factor: float) -> list[Block]:
    """Eight blocks of one prompt a client, ``factor`` times as fast as the baseline."""
    blocks = []
    for number in range(8):
        seconds = 2.0 * (1 + number / 10) / factor
        blocks.append(
            Block(
                party=party,
                clients=clients,
                temperature=0.0,
                key=f"0:{number}",
                group=str(number),
                seconds=seconds,
                samples=[make_sample(number + i, seconds=seconds) for i in range(clients)],
                gaps={"p50": 0.01, "p90": 0.02, "p99": 0.03},
                energy_joules=4.2,
            )
        )
    return blocks


def make_document(factor: float = 1.5, *, replayed: bool = False) -> Document:
    names = {"normal": 1.0, "tree:8": factor}
    return Document(
        created="2026-11-24T12:00:00+00:00",
        command=["gorgon", "bench"],
        machine=Machine(cpu="a CPU", num_cores=2, memory_gb=24.0, system="Linux", python="3.11"),
        parties=[
            PartyInfo(name="normal", kind="engine", version="1", settings={}, tree_size=1),
            PartyInfo(
                name="tree:8",
                kind="engine",
                version="1",
                settings={"threads": 2},
                tree_size=8,
                replayed=replayed,
            ),
        ],
        workload=Workload(
            prompts="made up",
            num_prompts=8,
            length=21,
            natural=False,
            temperatures=[0.0],
            clients=[1, 2],
            repeats=1,
            waves=1,
            seed=1,
            ttft_bound=1.0,
            tpot_bound=0.1,
        ),
        blocks=[b for c in (1, 2) for name, f in names.items() for b in make_blocks(name, c, f)],
        client_core_share=0.01,
    )
