"""The report of a compilation: tables on the terminal, a comparison as JSON and as a plot."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gorgon import __version__
from gorgon.compile import plot
from gorgon.compile.measure import Measurement
from gorgon.compile.workspace import Stage, write_json

COMPARISON, PLOT = "comparison.json", "comparison.png"


@dataclass(frozen=True, slots=True)
class Row:
    """One type of a model: file size in bytes, bits per weight, what was measured.

    ``measured`` is None for a file that is larger than the free memory.
    """

    name: str
    size: int
    bits_per_weight: float
    measured: Measurement | None

    def as_json(self) -> dict[str, Any]:
        """All of it, with the derived numbers."""
        value = {"type": self.name, "size": self.size, "bits_per_weight": self.bits_per_weight}
        if self.measured is None:
            return value
        return {
            **value,
            "tokens_per_second": self.measured.tokens_per_second,
            "t4_over_t1": self.measured.ratio(4),
            "t8_over_t1": self.measured.ratio(8),
            **self.measured.as_json(),
        }


def show(
    rows: Sequence[Row],
    cache: Mapping[int, Mapping[str, int]],
    stages: Sequence[Stage],
    console: Console,
) -> None:
    """Print all tables; the first row is the unquantised model."""
    tables = (_stage_table(stages), _size_table(rows), _speed_table(rows), _cache_table(cache))
    for table in tables:
        console.print()
        console.print(table)


def write_comparison(rows: Sequence[Row], folder: Path) -> set[str]:
    """Write the comparison into ``folder``; names of the files written."""
    write_json(folder / COMPARISON, [row.as_json() for row in rows])
    points = [
        plot.Point(row.name, row.size, row.measured.tokens_per_second, row.measured.quality)
        for row in rows
        if row.measured is not None
    ]
    if not points:
        return {COMPARISON}
    plot.draw(points, folder / PLOT)
    return {COMPARISON, PLOT}


def versions(of_converter: Mapping[str, str]) -> dict[str, str]:
    """Versions of everything that had a part in the files."""
    return {
        "gorgon": __version__,
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
        **of_converter,
    }


def _stage_table(stages: Sequence[Stage]) -> Table:
    table = _table("Stages", "stage", "size", "reduction", "time", "peak memory")
    first = stages[0].size
    for done in stages:
        is_model = done.file.endswith(".gguf")
        table.add_row(
            done.name.removesuffix(".gguf"),
            _size(done.size),
            f"{100 * (1 - done.size / first):.1f} %" if is_model and done is not stages[0] else "",
            f"{done.seconds:.1f} s",
            _size(done.peak_memory) if done.peak_memory else "",
        )
    return table


def _size_table(rows: Sequence[Row]) -> Table:
    table = _table("Size", "type", "file", "reduction", "bits/weight", "load", "resident memory")
    for row in rows:
        table.add_row(
            row.name,
            _size(row.size),
            f"{100 * (1 - row.size / rows[0].size):.1f} %",
            f"{row.bits_per_weight:.2f}",
            f"{row.measured.load_seconds:.2f} s" if row.measured else "",
            _size(row.measured.resident) if row.measured else "",
        )
    return table


def _speed_table(rows: Sequence[Row]) -> Table:
    columns = ("tokens/s", "t(4)/t(1)", "t(8)/t(1)", "perplexity", "KL divergence", "top-1")
    table = _table("Speed here, and quality against the first row", "type", *columns)
    for row in rows:
        if row.measured is None:
            continue
        measured, scored = row.measured, row.measured.quality
        table.add_row(
            row.name,
            f"{measured.tokens_per_second:.1f}",
            f"{measured.ratio(4):.2f}",
            f"{measured.ratio(8):.2f}",
            "" if scored is None else f"{scored.perplexity:.3f}",
            _number(scored.kl_divergence if scored else None, "{:.5f}"),
            _number(scored.top1_agreement if scored else None, "{:.1%}"),
        )
    return table


def _cache_table(cache: Mapping[int, Mapping[str, int]]) -> Table:
    names = list(next(iter(cache.values())))
    table = _table("KV cache by --cache-type", "--num-cells", *names)
    for length, sizes in cache.items():
        table.add_row(f"{length:,}", *(_size(sizes[name]) for name in names))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
