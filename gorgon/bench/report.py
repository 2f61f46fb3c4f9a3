"""The document as Markdown for people and CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Sequence

from gorgon.bench.document import Document, PartyInfo
from gorgon.bench.statistics import format_percentiles
from gorgon.bench.summary import (
    Row,
    accepted_by_depth,
    accepted_by_source,
    categories,
    category_speedup,
    summarise,
)

REPLAYED = "acceptance replayed"
REPLAYED_NOTE = (
    "**Acceptance is replayed.** The weights are random: drafts were made right as often as stated "
    "accuracies say, everything else (the model's passes, heads, trees, acceptance, bookkeeping) "
    "really ran. Speeds are those of the engine at this size and acceptance, not of a real model."
)


def markdown(document: Document, charts: Sequence[str] = ()) -> str:
    """The whole report; ``charts`` are names of image files beside it."""
    rows = summarise(document)
    parts = [
        "# Benchmark",
        *([REPLAYED_NOTE] if document.replayed else []),
        _setup(document),
        "## Results",
        _explanation(document),
        *(_load_section(document, rows, t, c) for t, c in _loads(rows)),
        *_optional("## Speed-up by category", _category_table(document)),
        *_optional("## Drafts", _draft_table(document)),
        *_optional("## Where a step's time goes", _share_table(rows)),
        *_optional("## t(n)", _curve_table(document)),
        *(f"![{name}]({name})" for name in charts),
    ]
    return "\n\n".join(parts) + "\n"


def _optional(title: str, table: str) -> list[str]:
    return [title, table] if table else []


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines])


def _setup(document: Document) -> str:
    machine, work = document.machine, document.workload
    device = f", {machine.accelerator}" if machine.accelerator else ""
    lines = [
        f"{document.created}, {machine.cpu}, {machine.num_cores} cores, "
        f"{machine.memory_gb:.0f} GB{device}, {machine.system}, Python {machine.python}.",
        "",
        f"    {shlex.join(document.command)}",
        "",
        f"{work.num_prompts} prompts of {work.prompts}, {work.answers}, "
        f"{work.repeats} repeat(s), {work.waves} requests per client and block, seed {work.seed}; "
        f"every round of prompts went to every party in turns. {_client_cost(document)}",
        "",
        table(
            ["party", "version", "settings", "resident MB"],
            [_party_cells(party) for party in document.parties],
        ),
    ]
    return "\n".join(lines)


def _client_cost(document: Document) -> str:
    if any(party.kind in ("engine", "llama.cpp") for party in document.parties):
        return "Engines ran in the client's own process."
    return f"The client itself used {100 * document.client_core_share:.1f} % of a core."


def _party_cells(party: PartyInfo) -> list[str]:
    settings = " ".join(f"{name}={value}" for name, value in party.settings.items())
    memory = f"{party.resident_mb:.0f}" if party.resident_mb else "-"
    name = f"{party.name} ({REPLAYED})" if party.replayed else party.name
    return [name, party.version, f"`{settings}`" if settings else "-", memory]


def _explanation(document: Document) -> str:
    work = document.workload
    return (
        f"Speed-up is against {document.parties[0].name}: tokens/s of whole requests, and of "
        "streams after their first token; the geometric mean over pairs with a 95 % interval "
        "(paired bootstrap over groups of prompts). Latencies are p50 / p90 / p99 in ms. A gap is "
        "the time between two arrivals of text, which may carry several tokens. Goodput is answers "
        f"per second with the first token within {work.ttft_bound:g} s and further ones at most "
        f"{1e3 * work.tpot_bound:g} ms apart on average."
    )


def _loads(rows: Iterable[Row]) -> list[tuple[float, int]]:
    return list(dict.fromkeys((row.temperature, row.clients) for row in rows))


def _load_section(document: Document, rows: Sequence[Row], temperature: float, clients: int) -> str:
    title = f"### {clients} client{'s' if clients > 1 else ''}, {_sampling(temperature)}"
    chosen = [r for r in rows if r.clients == clients and r.temperature == temperature]
    has_energy = any(row.joules_per_token is not None for row in chosen)
    header = [
        *("party", "tokens/s in all", "speed-up", "stream tokens/s", "speed-up of streams"),
        *("TTFT", "time per token", "gap", "goodput/s", "tokens/step", "accepted", "same text"),
        *(["J/token"] if has_energy else []),
    ]
    replayed = {party.name for party in document.parties if party.replayed}
    cells = [_result_cells(row, row.party in replayed, has_energy) for row in chosen]
    return f"{title}\n\n{table(header, cells)}"


def _sampling(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _result_cells(row: Row, replayed: bool, has_energy: bool) -> list[str]:
    energy = f"{row.joules_per_token:.3f}" if row.joules_per_token is not None else "-"
    return [
        f"{row.party} ({REPLAYED})" if replayed else row.party,
        f"{row.total_rate:.1f}",
        str(row.speedup),
        f"{row.stream_rate:.1f}",
        str(row.stream_speedup),
        format_percentiles(row.ttft),
        format_percentiles(row.tpot, digits=2),
        format_percentiles(row.gaps, digits=2),
        f"{row.goodput:.2f}",
        "-" if row.tokens_per_step is None else f"{row.tokens_per_step:.2f}",
        "-" if row.accepted_share is None else f"{100 * row.accepted_share:.0f} %",
        f"{100 * row.same_text:.0f} %",
        *([energy] if has_energy else []),
    ]


def _category_table(document: Document) -> str:
    """One client; categories with at least one prompt."""
    if 1 not in document.workload.clients:
        return ""
    names = categories(document)
    rows = []
    for party in document.parties[1:]:
        found = [category_speedup(document, party.name, name) for name in names]
        rows.append([party.name, *("-" if each is None else str(each) for each in found)])
    return table(["party", *names], rows)


def _draft_table(document: Document) -> str:
    rows = []
    for party in document.parties:
        blocks = [block for block in document.blocks if block.party == party.name]
        depths, sources = accepted_by_depth(blocks), accepted_by_source(blocks)
        if depths or sources:
            rows.append(
                [
                    party.name,
                    "; ".join(_share(f"depth {i}", *d) for i, d in enumerate(depths, 1)) or "-",
                    "; ".join(_share(name, *found) for name, found in sources.items()) or "-",
                ]
            )
    return table(["party", "accepted of drafted by depth", "by source"], rows)


def _share(name: str, drafted: int, accepted: int) -> str:
    percent = f" ({100 * accepted / drafted:.0f} %)" if drafted else ""
    return f"{name}: {accepted} of {drafted}{percent}"


def _share_table(rows: Sequence[Row]) -> str:
    header = ["party", "clients", "steps", "whole step", "model", "heads", "outside both"]
    return table(
        [*header[:3], *(f"{name}, ms" for name in header[3:])],
        [
            [
                row.party,
                str(row.clients),
                str(row.step_share.num_steps),
                *(
                    format_percentiles(part, digits=3)
                    for part in (
                        row.step_share.total,
                        row.step_share.model,
                        row.step_share.heads,
                        row.step_share.outside,
                    )
                ),
            ]
            for row in rows
            if row.step_share is not None
        ],
    )


def _curve_table(document: Document) -> str:
    curves = document.step_curves
    sizes = sorted({point.tokens for curve in curves for point in curve.points})
    rows = []
    for curve in curves:
        for name in ("measured", "modelled"):
            known = {point.tokens: getattr(point, name) for point in curve.points}
            cells = [_ms(known.get(size)) for size in sizes]
            if any(cell != "-" for cell in cells):
                rows.append([f"{curve.party}, context {curve.context}, {name}, ms", *cells])
    return table(["n", *map(str, sizes)], rows)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


CSV_COLUMNS = (
    *("party", "clients", "temperature", "answers", "tokens", "seconds", "tokens_per_second"),
    *("speedup", "speedup_low", "speedup_high"),
    *("stream_tokens_per_second", "stream_speedup", "stream_speedup_low", "stream_speedup_high"),
    *("ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90", "tpot_p99"),
    *("gap_p50", "gap_p90", "gap_p99", "goodput", "tokens_per_step", "accepted_share"),
    *("same_text", "joules_per_token", "replayed"),
)


def as_csv(document: Document) -> str:
    """One line for each party and load; times in seconds, shares between 0 and 1."""
    replayed = {party.name for party in document.parties if party.replayed}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in summarise(document):
        writer.writerow(_csv_cells(row, row.party in replayed))
    return text.getvalue()


def _csv_cells(row: Row, replayed: bool) -> list[object]:
    def three(found: dict[str, float]) -> list[float | None]:
        return [found.get(name) for name in ("p50", "p90", "p99")]

    cells: list[object] = [
        *(row.party, row.clients, row.temperature, row.num_answers, row.tokens),
        *(row.seconds, row.total_rate),
        *(row.speedup.value, row.speedup.low, row.speedup.high),
        *(row.stream_rate, row.stream_speedup.value),
        *(row.stream_speedup.low, row.stream_speedup.high),
        *(*three(row.ttft), *three(row.tpot), *three(row.gaps)),
        *(row.goodput, row.tokens_per_step, row.accepted_share, row.same_text),
        *(row.joules_per_token, int(replayed)),
    ]
    return [round(cell, 6) if isinstance(cell, float) else cell for cell in cells]
