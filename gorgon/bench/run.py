"""`gorgon bench`: start everybody, measure, write document, table, report and charts."""

from __future__ import annotations

import contextlib
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gorgon.bench import compare as comparison
from gorgon.bench.assemble import MakeEncode, assemble
from gorgon.bench.charts import draw_all
from gorgon.bench.curve import measure_curves
from gorgon.bench.document import Block, Document, StepCurve, Workload, read_document, write_text
from gorgon.bench.machine import describe_machine
from gorgon.bench.options import Options
from gorgon.bench.party import Party
from gorgon.bench.prompts import load_prompts
from gorgon.bench.report import REPLAYED_NOTE, as_csv, markdown
from gorgon.bench.runner import Runner
from gorgon.bench.summary import summarise

RESULT = "result.json"


def run(options: Options, make_encode: MakeEncode, console: Console | None = None) -> Document:
    """Measure and write everything into ``options.out``.

    Raises:
        GorgonError: when a party cannot be started or does not answer; nothing is written.
    """
    console = console or Console(stderr=True)
    prompts = load_prompts(options.prompts, options.count)
    workload = options.workload(len(prompts))
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with console.status("starting"):
            parties = assemble(options, make_encode, stack)
        runner = Runner(parties, console)
        with console.status("warming up"):
            runner.warm_up(prompts, workload)
        blocks = runner.run(prompts, workload)
        curves = measure_curves(parties) if options.curve else []
        document = _document(parties, workload, blocks, curves, runner.client_core_share)
    write_all(document, options.out, charts=options.charts)
    show(document, Console())
    console.print(f"written to {options.out}/")
    return document


def _document(
    parties: Sequence[Party],
    workload: Workload,
    blocks: list[Block],
    curves: list[StepCurve],
    client_core_share: float,
) -> Document:
    infos = [
        party.info.model_copy(update={"resident_mb": party.resident_mb()}) for party in parties
    ]
    return Document(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=["gorgon", *sys.argv[1:]],
        machine=describe_machine(),
        parties=infos,
        workload=workload,
        blocks=blocks,
        step_curves=curves,
        client_core_share=round(client_core_share, 4),
    )


def write_all(document: Document, folder: Path, *, charts: bool) -> None:
    """result.json, result.csv, report.md and the charts."""
    write_text(folder / RESULT, document.model_dump_json(exclude_defaults=True) + "\n")
    write_text(folder / "result.csv", as_csv(document))
    names = draw_all(document, folder) if charts else []
    write_text(folder / "report.md", markdown(document, names))


def redraw(path: Path, *, charts: bool) -> None:
    """Write report, table and charts of a document again, beside it."""
    write_all(read_document(path), path.parent, charts=charts)


def show(document: Document, console: Console) -> None:
    """The gist, in the terminal."""
    table = Table("n", "temp.", "party", "tokens/s", "speed-up [95 %]", "tok/step", "TTFT ms")
    table.columns[4].no_wrap = True
    for row in summarise(document):
        steps = "-" if row.tokens_per_step is None else f"{row.tokens_per_step:.2f}"
        table.add_row(
            *(str(row.clients), f"{row.temperature:g}", row.party, f"{row.total_rate:.1f}"),
            *(str(row.speedup), steps, f"{1e3 * row.ttft['p50']:.0f}"),
        )
    console.print(table)
    if document.replayed:
        console.print(REPLAYED_NOTE.replace("**", ""))


def compare(old: Path, new: Path, tolerance: float) -> bool:
    """Print what changed; whether nothing became slower.

    Raises:
        BenchError: when one is no document, or they share nothing.
    """
    before, after = read_document(old), read_document(new)
    changes = comparison.compare(before, after)
    print(comparison.describe(before, after, changes, tolerance))
    return not any(change.is_regression(tolerance) for change in changes)
