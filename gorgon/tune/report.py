"""What tuning found: a table for the terminal and a picture of t(n)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gorgon.engine.measure import Measured
from gorgon.errors import ConfigError
from gorgon.speculation.cost import StepCost
from gorgon.tune.curve import batch_rate, score, single_rate
from gorgon.tune.quantizations import TypeTrial
from gorgon.tune.search import Outcome

_SHOWN = (1, 2, 4, 8, 16)
_CONTEXT = 512


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Every trial: t(n) at 512 tokens, what it promises, and what was chosen."""
    table = Table(title="t(n) in ms at a context of 512, by setting", title_justify="left")
    for name in ("setting", "value", *(f"n = {n}" for n in _SHOWN)):
        table.add_column(name, justify="left" if name in ("setting", "value") else "right")
    table.add_column("alone", justify="right")
    table.add_column("eight", justify="right")
    last = ""
    for trial in outcome.trials:
        if last and trial.knob != last:
            table.add_section()
        name, last = "" if trial.knob == last else trial.knob, trial.knob
        mark = "[bold green]" if trial.is_chosen else ""
        value = f"{mark}{trial.value}{' <' if trial.is_chosen else ''}"
        if trial.measured is None:
            table.add_row(name, value, "-")
        else:
            table.add_row(name, value, *_numbers(trial.measured))
    console.print(table)
    for trial in outcome.trials:
        if trial.error:
            console.print(f"[dim]{trial.knob} = {trial.value} does not run: {trial.error}")
    console.print(_LEGEND)


def print_types(console: Console, current: Measured, types: Sequence[TypeTrial]) -> None:
    """How fast other quantisations of the model would be."""
    table = Table(title="Other quantisations of this model", title_justify="left")
    table.add_column("type")
    table.add_column("MB", justify="right")
    for name in (*(f"n = {n}" for n in _SHOWN), "alone", "eight", "score"):
        table.add_column(name, justify="right")
    base = score(current.times)
    table.add_row("as it is", "", *_numbers(current), "1.00")
    for trial in types:
        if trial.measured is None:
            table.add_row(trial.name, "", "-")
            console.print(f"[dim]{trial.name} does not run: {trial.error}")
            continue
        factor = score(trial.measured.times) / base
        size = f"{trial.size / 1e6:.0f}"
        table.add_row(trial.name, size, *_numbers(trial.measured), f"{factor:.2f}")
    console.print(table)
    console.print("[dim]Their quality is another matter: gorgon compile --compare tells it.")


def plot(path: Path, title: str, curves: Sequence[tuple[str, Measured]]) -> None:
    """Draw t(n) of several settings into a PNG.

    Raises:
        ConfigError: when matplotlib is not there, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'gorgon[bench]'") from error
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = zip(_MARKERS * len(curves), _COLOURS * len(curves), curves, strict=False)
    for marker, colour, (name, measured) in styles:
        times = measured.times
        row = len(times.contexts) - 1
        label = f"{name}, context {times.contexts[row]}"
        axes.plot(
            times.sizes, times.seconds[row] * 1e3, marker=marker, color=colour, label=label, ms=4
        )
    axes.set(xlabel="tokens in a step, n", ylabel="t(n), ms", title=title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(_TICKS), [str(n) for n in _TICKS])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


_LEGEND = (
    "[dim]alone: tokens/s of one request with the trees of Medusa heads as good as Vicuna's, "
    "computed from t(n); eight: of eight requests without drafts"
)
# Okabe and Ito's colours, told apart by the colour-blind; markers for print.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
_TICKS = (1, 2, 4, 8, 16, 32, 64)


def _numbers(measured: Measured) -> list[str]:
    seconds = StepCost(measured.times, 64).seconds(_CONTEXT)
    return [
        *(f"{seconds[n] * 1e3:.1f}" for n in _SHOWN),
        f"{single_rate(measured.times):.1f}",
        f"{batch_rate(measured.times):.1f}",
    ]
