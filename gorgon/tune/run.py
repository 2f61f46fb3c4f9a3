"""`gorgon tune`: measure, choose, keep, tell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gorgon.config import EngineSettings
from gorgon.engine import tuned
from gorgon.llama.backend import default_model
from gorgon.llama.device import on_gpu
from gorgon.llama.model import inspect
from gorgon.llama.quantize import Quantization
from gorgon.tune import report
from gorgon.tune.curve import fixed_sizes
from gorgon.tune.quantizations import TypeTrial, try_types
from gorgon.tune.search import Outcome, knobs, measure_settings, search


def run(
    settings: EngineSettings, seconds: float, types: Sequence[str], picture: Path | None
) -> None:
    """Find good settings for a model and keep them for ``gorgon serve``.

    Args:
        settings: where to start; what is given explicitly is not varied.
        seconds: for each measurement.
        types: quantisations to try as well.
        picture: a PNG of t(n) to draw.

    Raises:
        GorgonError: when a type is unknown, or the model does not load as it is.
    """
    wanted_types = [Quantization(name, requantize=True) for name in types]
    console = Console()
    settings = settings.model_copy(update={"model": settings.model or default_model()})
    info = inspect(settings.model or default_model())
    console.print(f"tuning {info.name} ({info.path.name})")
    wanted = {
        knob: values
        for knob, values in knobs(settings, on_gpu(settings.gpu_layers)).items()
        if knob not in settings.model_fields_set
    }
    measure_one = partial(measure_settings, seconds=seconds)
    count = 1 + sum(2 * len(values) for values in wanted.values()) + len(types)
    with _progress(console) as bar:
        task = bar.add_task("measuring", total=count, what="")
        outcome = search(
            settings, wanted, measure_one, lambda what: bar.update(task, advance=1, what=what)
        )
        others: list[TypeTrial] = []
        for trial in try_types(info.path, wanted_types, outcome.settings, measure_one):
            others.append(trial)
            bar.update(task, advance=1, what=trial.name)
    report.print_outcome(console, outcome)
    if others:
        report.print_types(console, outcome.measured, others)
    _keep(console, outcome)
    if picture is not None:
        curves = [("as tuned", outcome.measured)]
        curves += [(t.name, t.measured) for t in others if t.measured is not None]
        report.plot(picture, f"{info.name} on this machine", curves)
        console.print(f"t(n) is drawn in {picture}")


def _keep(console: Console, outcome: Outcome) -> None:
    measured, captures_graphs = outcome.measured, on_gpu(outcome.settings.gpu_layers)
    sizes = fixed_sizes(measured.times, measured.change, captures_graphs)
    changed = dict(outcome.changed)
    if sizes:
        changed["batch_sizes"] = sizes
    path = tuned.write(outcome.settings, changed)
    if changed:
        words = ", ".join(f"{name} = {value}" for name, value in changed.items())
        console.print(f"[bold]kept for this model:[/] {words} ({path})")
    else:
        console.print("[bold]the defaults are best here[/]")


def _progress(console: Console) -> Progress:
    return (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[what]}"),
            console=console,
            transient=True,
        )
        if console.is_terminal
        else Progress(
            TextColumn("{task.description} {task.completed}/{task.total} {task.fields[what]}"),
            console=console,
        )
    )
