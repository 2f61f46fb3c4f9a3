"""Charts of a document as PNG: readable in grey print and without telling red from green.

Colours are Okabe and Ito's ("Color Universal Design", 2008); hatches and markers carry the same
difference once more. matplotlib is imported when a chart is drawn: it is in the extra ``bench``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gorgon.bench.document import Document
from gorgon.bench.report import REPLAYED
from gorgon.bench.summary import Row, categories, category_speedup, summarise
from gorgon.errors import BenchError

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
HATCHES = ("", "//", "\\\\", "xx", "..", "--", "||", "++")
MARKERS = "os^Dv<>P"
LINES = ("-", "--", "-.", ":")
_DPI = 150

Chart = Callable[[Any, Document], Any]


def draw_all(document: Document, folder: Path) -> list[str]:
    """Draw every chart that the document has data for; the names of the files.

    Raises:
        BenchError: when matplotlib is not installed.
    """
    plot = _load_matplotlib()
    charts: dict[str, Chart] = {
        "panels.png": draw_panels,
        "categories.png": draw_categories,
        "clients.png": draw_clients,
        "trees.png": draw_trees,
        "steps.png": draw_steps,
    }
    names = []
    for name, draw in charts.items():
        figure = draw(plot, document)
        if figure is not None:
            _stamp(figure, document)
            part = folder / f"{name}.part"
            figure.savefig(part, dpi=_DPI, format="png")
            part.replace(folder / name)
            plot.close(figure)
            names.append(name)
    return names


def _load_matplotlib() -> Any:
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError as error:
        raise BenchError(
            "charts need matplotlib: pip install 'gorgon[bench]', or leave them out by --no-charts"
        ) from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    return plt


def _stamp(figure: Any, document: Document) -> None:
    """Where and when below, and over everything when the acceptance is not earned."""
    machine = document.machine
    where = f"{machine.cpu}, {machine.num_cores} cores"
    where += f", {machine.accelerator}" if machine.accelerator else ""
    figure.text(0.01, 0.005, f"{where}; {document.created[:10]}", fontsize=6.5, color="#555555")
    if document.replayed:
        box = {"boxstyle": "round", "facecolor": "#FFF4C2", "edgecolor": "black"}
        figure.text(
            0.985, 0.985, REPLAYED, ha="right", va="top", fontsize=9, weight="bold", bbox=box
        )


def _rows(document: Document, clients: int | None = None) -> list[Row]:
    """Rows of the first temperature, and of so many clients."""
    first = document.workload.temperatures[0]
    rows = [row for row in summarise(document) if row.temperature == first]
    return [row for row in rows if clients is None or row.clients == clients]


def _style(document: Document, party: str) -> tuple[str, str, str, str]:
    """Colour, hatch, marker and line of a party."""
    i = [info.name for info in document.parties].index(party)
    other = i + i // 8  # the ninth has the first one's colour, but no other sign of it
    return COLOURS[i % 8], HATCHES[other % 8], MARKERS[other % 8], LINES[other // 2 % 4]


def _bars(axes: Any, document: Document, rows: Sequence[Row], values: Sequence[float]) -> Any:
    """One horizontal bar a row, labelled with its value."""
    names = [row.party for row in rows]
    bars = axes.barh(range(len(rows)), values, edgecolor="black", linewidth=0.6)
    for bar, row in zip(bars, rows, strict=True):
        colour, hatch, _, _ = _style(document, row.party)
        bar.set(facecolor=colour, hatch=hatch)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.18)
    return bars


def draw_panels(plot: Any, document: Document) -> Any:
    """Four panels, fewest clients: tokens/s, time, tokens at equal length, acceptance and speed."""
    clients = min(document.workload.clients)
    rows = _rows(document, clients)
    figure, panels = plot.subplots(2, 2, figsize=(11, 2.6 + 0.62 * len(rows)))
    rates, times, lengths, gains = panels.flat
    bars = _bars(rates, document, rows, [row.total_rate for row in rows])
    rates.bar_label(bars, fmt="%.1f", padding=3)
    rates.set(title="Tokens per second", xlabel="tokens/s, prompt included")
    bars = _bars(times, document, rows, [row.duration["p50"] for row in rows])
    times.bar_label(bars, fmt="%.2f", padding=3)
    times.set(title="Generation time", xlabel="s per answer, median")
    bars = _bars(lengths, document, rows, [row.tokens / row.num_answers for row in rows])
    lengths.bar_label(bars, fmt="%.1f", padding=3)
    lengths.set(title="Tokens generated", xlabel="new tokens per answer, mean")
    _draw_gains(gains, document, rows)
    work = document.workload
    suffix = "s" if clients > 1 else ""
    figure.suptitle(
        f"{clients} client{suffix}, {work.num_prompts} prompts, {work.answers}",
        y=0.985,
    )
    figure.tight_layout(rect=(0, 0.02, 1, 0.99))
    return figure


def _draw_gains(axes: Any, document: Document, rows: Sequence[Row]) -> None:
    """Speed-up with its interval; the share of accepted drafts is written beside it."""
    _bars(axes, document, rows, [row.speedup.value for row in rows])
    high = max(min(row.speedup.high, 3 * row.speedup.value) for row in rows)
    for i, row in enumerate(rows):
        _error_bar(axes, row.speedup.value, i, row.speedup.low, row.speedup.high)
        accepted = "" if row.accepted_share is None else f", {100 * row.accepted_share:.0f} % acc."
        label = f"{row.speedup.value:.2f}x{accepted}"
        axes.text(1.06 * high, i, label, va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(0, 1.5 * high)
    axes.set(title="Speed-up and acceptance", xlabel=f"speed-up over {document.parties[0].name}")


def _error_bar(axes: Any, value: float, at: float, low: float, high: float) -> None:
    if high != float("inf"):
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, at, xerr=error, color="black", capsize=3, linewidth=1)


def draw_categories(plot: Any, document: Document) -> Any:
    """Speed-up by category with intervals, one client, a panel for each party.

    None without several categories.
    """
    names = categories(document)
    parties = document.parties[1:]
    if 1 not in document.workload.clients or len(names) < 2 or not parties:
        return None
    columns = min(3, len(parties))
    lines = math.ceil(len(parties) / columns)
    size = (2.2 + 3.2 * columns, 1.0 + lines * (1.0 + 0.24 * len(names)))
    figure, grid = plot.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for axes, party in zip(grid.flat, parties, strict=False):
        colour, _, marker, _ = _style(document, party.name)
        for row, name in enumerate(names):
            found = category_speedup(document, party.name, name)
            if found is not None:
                _error_bar(axes, found.value, row, found.low, found.high)
                axes.plot(found.value, row, marker, color=colour, markeredgecolor="black")
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set_title(party.name)
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(parties) :]:
        axes.set_visible(False)
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    figure.suptitle("Speed-up by category, 1 client", y=0.985)
    figure.supxlabel(
        f"speed-up over {document.parties[0].name}, 95 % interval where a category has two prompts",
        fontsize=9,
        y=0.03,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 0.985))
    return figure


def draw_clients(plot: Any, document: Document) -> Any:
    """Throughput, speed-up and latencies against the number of clients; None with only one."""
    counts = document.workload.clients
    if len(counts) < 2:
        return None
    figure, grid = plot.subplots(2, 3, figsize=(13, 8.2))
    panels = {
        "Throughput": ("tokens/s in all", lambda row: row.total_rate),
        "Speed-up, 95 % interval": (
            f"over {document.parties[0].name}",
            lambda row: row.speedup.value,
        ),
        "Goodput": ("answers/s within both bounds", lambda row: row.goodput),
        "Time to the first token, median": ("ms", lambda row: _ms(row.ttft, "p50")),
        "Time per token, median": ("ms", lambda row: _ms(row.tpot, "p50")),
        "Time between two texts, p99": ("ms", lambda row: _ms(row.gaps, "p99")),
    }
    for axes, (title, (label, value)) in zip(grid.flat, panels.items(), strict=True):
        for party in document.parties:
            _draw_against_clients(axes, document, party.name, value)
        axes.set(title=title, ylabel=label, xlabel="clients", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
    _draw_gain_bands(grid[0][1], document)
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", ncols=5, fontsize=8, bbox_to_anchor=(0.5, 0.02)
    )
    lines = (len(document.parties) + 4) // 5
    figure.tight_layout(rect=(0, 0.04 + 0.025 * lines, 1, 0.965))
    return figure


def _draw_against_clients(
    axes: Any, document: Document, party: str, value: Callable[[Row], float | None]
) -> None:
    rows = [row for row in _rows(document) if row.party == party]
    found = [(row.clients, y) for row in rows if (y := value(row)) is not None]
    colour, _, marker, line = _style(document, party)
    axes.plot(
        [x for x, _ in found],
        [y for _, y in found],
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=5.5,
        markeredgecolor="black",
        markeredgewidth=0.5,
        label=party,
    )


def _draw_gain_bands(axes: Any, document: Document) -> None:
    """Intervals of the speed-ups; one from a single block is without bounds and left out."""
    rows = [row for row in _rows(document) if row.speedup.high != float("inf")]
    for party in document.parties[1:]:
        own = [row for row in rows if row.party == party.name]
        colour = _style(document, party.name)[0]
        low, high = [r.speedup.low for r in own], [r.speedup.high for r in own]
        axes.fill_between([row.clients for row in own], low, high, color=colour, alpha=0.15)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_ylim(0, 1.5 * max(row.speedup.value for row in _rows(document)))


def _ms(found: Mapping[str, float], name: str) -> float | None:
    return 1e3 * found[name] if found else None


def draw_trees(plot: Any, document: Document) -> Any:
    """Tokens/step and speed-up against the nodes of fixed trees; None without such modes."""
    sizes = {info.name: info.tree_size for info in document.parties if info.tree_size}
    rows = [row for row in _rows(document, min(document.workload.clients)) if row.party in sizes]
    rows = [row for row in rows if row.tokens_per_step]
    if len(rows) < 2:
        return None
    figure, (steps, gains) = plot.subplots(1, 2, figsize=(10, 4.4))
    kinds = (("tree", "o", "-", 0), ("chain", "s", "--", 5), ("paths", "^", ":", 2))
    for kind, marker, line, colour in kinds:
        chosen = [row for row in rows if row.party.partition(":")[0] in (kind, "normal")]
        chosen.sort(key=lambda row: sizes[row.party] or 0)
        if len(chosen) < 2:
            continue
        x = [sizes[row.party] for row in chosen]
        style = {"marker": marker, "linestyle": line, "color": COLOURS[colour]}
        steps.plot(x, [row.tokens_per_step for row in chosen], label=kind, **style)
        gains.plot(x, [row.speedup.value for row in chosen], **style)
        for row in chosen:
            gain, size = row.speedup, sizes[row.party]
            if gain.high != float("inf"):
                gains.plot([size, size], [gain.low, gain.high], "-", color="black", linewidth=0.8)
    steps.set(title="What fixed trees yield", ylabel="tokens/step", ylim=(0, None))
    gains.set(title="What that is worth, 95 % interval", ylabel="speed-up", ylim=(0, None))
    gains.axhline(1.0, color="black", linewidth=1)
    ticks = sorted({size for name, size in sizes.items() if size})
    for axes in (steps, gains):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(size) for size in ticks])
        axes.minorticks_off()
        axes.set_xlabel("nodes of the tree, root included")
    steps.legend(fontsize=8, loc="lower right")
    figure.tight_layout(rect=(0, 0.03, 1, 0.95))
    return figure


def draw_steps(plot: Any, document: Document) -> Any:
    """t(n) measured and modelled; None where nobody measured it."""
    if not document.step_curves:
        return None
    figure, axes = plot.subplots(figsize=(7, 4.4))
    for i, curve in enumerate(document.step_curves):
        x = [point.tokens for point in curve.points]
        colour, marker = COLOURS[i % 8], MARKERS[i % 8]
        label = f"{curve.party}, context {curve.context}"
        measured = [1e3 * point.measured for point in curve.points]
        axes.plot(x, measured, marker, color=colour, label=f"{label}: measured")
        known = [point for point in curve.points if point.modelled is not None]
        if known:
            y = [1e3 * (point.modelled or 0.0) for point in known]
            axes.plot([p.tokens for p in known], y, "-", color=colour, label=f"{label}: modelled")
    sizes = sorted({point.tokens for curve in document.step_curves for point in curve.points})
    axes.set(xlabel="tokens of a step, n", ylabel="t(n), ms", title="Time of a step")
    axes.set_ylim(0, None)
    axes.set_xscale("log", base=2)
    ticks = [n for n in sizes if n & (n - 1) == 0]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 0.97))
    return figure
