"""Charts of a document as PNG: readable in grey print and without telling red from green.

Colours are Okabe and Ito's ("Color Universal Design", 2008); hatches and markers carry the same
difference once more. matplotlib is imported when a chart is drawn: it is in the extra ``bench``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gorgon.bench.document import Document
from gorgon.bench.report import REPLAYED
from gorgon.bench.summary import Row, categories, category_speedup, summarise
from gorgon.errors import BenchError

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555")
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
    return COLOURS[i % 8], HATCHES[i % 8], MARKERS[i % 8], LINES[i // 2 % 4]


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
    length = "at most" if work.natural else "exactly"
    suffix = "s" if clients > 1 else ""
    figure.suptitle(
        f"{clients} client{suffix}, {work.num_prompts} prompts, {length} {work.length} new tokens",
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
        axes.text(1.03 * high, i, label, va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(0, 1.45 * high)
    axes.set(title="Speed-up and acceptance", xlabel=f"speed-up over {document.parties[0].name}")


def _error_bar(axes: Any, value: float, at: float, low: float, high: float) -> None:
    if high != float("inf"):
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, at, xerr=error, color="black", capsize=3, linewidth=1)


def draw_categories(plot: Any, document: Document) -> Any:
    """Speed-up by category with intervals, one client; None without several categories."""
    names = categories(document)
    parties = document.parties[1:]
    if 1 not in document.workload.clients or len(names) < 2 or not parties:
        return None
    figure, axes = plot.subplots(figsize=(8, 1.5 + len(names) * (0.25 + 0.16 * len(parties))))
    height = 0.8 / len(parties)
    for i, party in enumerate(parties):
        colour, _, marker, _ = _style(document, party.name)
        for row, name in enumerate(names):
            found = category_speedup(document, party.name, name)
            if found is not None:
                at = row + (i - (len(parties) - 1) / 2) * height
                _error_bar(axes, found.value, at, found.low, found.high)
                label = party.name if row == 0 else None
                axes.plot(
                    found.value, at, marker, color=colour, markeredgecolor="black", label=label
                )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"speed-up over {document.parties[0].name}, 95 % interval")
    axes.set_title("Speed-up by category, 1 client")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout(rect=(0, 0.03, 1, 0.97))
    return figure


def draw_clients(plot: Any, document: Document) -> Any:
    """Throughput, speed-up and latency against the number of clients; None with only one."""
    counts = document.workload.clients
    if len(counts) < 2:
        return None
    figure, (rates, gains, gaps) = plot.subplots(1, 3, figsize=(13, 4.4))
    for party in document.parties:
        rows = [row for row in _rows(document) if row.party == party.name]
        colour, _, marker, line = _style(document, party.name)
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
        x = [row.clients for row in rows]
        rates.plot(x, [row.total_rate for row in rows], label=party.name, **style)
        gains.plot(x, [row.speedup.value for row in rows], **style)
        low = [row.speedup.low for row in rows]
        gains.fill_between(x, low, [row.speedup.high for row in rows], color=colour, alpha=0.15)
        timed = [row for row in rows if row.tpot]
        gaps.plot([r.clients for r in timed], [1e3 * r.tpot["p50"] for r in timed], **style)
        gaps.plot(
            *([r.clients for r in timed], [1e3 * r.tpot["p99"] for r in timed]),
            **{**style, "markerfacecolor": "none", "linewidth": 0.7},
        )
    rates.set(title="Throughput", ylabel="tokens/s in all", ylim=(0, None))
    gains.set(title="Speed-up, 95 % interval", ylabel=f"over {document.parties[0].name}")
    gains.set_ylim(0, 1.5 * max(row.speedup.value for row in _rows(document)))
    gains.axhline(1.0, color="black", linewidth=1)
    gaps.set(title="Time per token: median, p99 (hollow)", ylabel="ms", ylim=(0, None))
    for axes in (rates, gains, gaps):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("clients")
    figure.legend(loc="lower center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, 0.02))
    lines = (len(document.parties) + 3) // 4
    figure.tight_layout(rect=(0, 0.06 + 0.045 * lines, 1, 0.96))
    return figure


def draw_trees(plot: Any, document: Document) -> Any:
    """Tokens/step and speed-up against the nodes of fixed trees; None without such modes."""
    sizes = {info.name: info.tree_size for info in document.parties if info.tree_size}
    rows = [row for row in _rows(document, min(document.workload.clients)) if row.party in sizes]
    rows = [row for row in rows if row.tokens_per_step]
    if len(rows) < 2:
        return None
    figure, axes = plot.subplots(figsize=(7, 4.4))
    other = axes.twinx()
    for kind, marker, line in (("tree", "o", "-"), ("chain", "s", "--"), ("paths", "^", ":")):
        chosen = [row for row in rows if row.party.partition(":")[0] in (kind, "normal")]
        chosen.sort(key=lambda row: sizes[row.party] or 0)
        if len(chosen) > 1:
            x = [sizes[row.party] for row in chosen]
            style = {"marker": marker, "linestyle": line}
            steps = [row.tokens_per_step for row in chosen]
            gains = [row.speedup.value for row in chosen]
            axes.plot(x, steps, color=COLOURS[0], label=f"{kind}: tokens/step", **style)
            hollow = {"markerfacecolor": "none", "color": COLOURS[5]}
            other.plot(x, gains, label=f"{kind}: speed-up", **style, **hollow)
    axes.set(xlabel="nodes of the tree, root included", ylabel="tokens/step (filled)")
    axes.set_title("Fixed trees: what they yield, and what that is worth")
    axes.set_ylim(1, None)
    other.set(ylabel="speed-up (hollow)", ylim=(0, None))
    other.axhline(1.0, color=COLOURS[5], linewidth=0.7)
    other.grid(visible=False)
    figure.legend(loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, 0.03))
    figure.tight_layout(rect=(0, 0.12, 1, 0.97))
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
    axes.set(xlabel="tokens of a step, n", ylabel="t(n), ms", title="Time of a step")
    axes.set_ylim(0, None)
    axes.legend(fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 0.97))
    return figure
