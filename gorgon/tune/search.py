"""Trying settings one after the other, the best so far kept.

Every knob's values take turns, twice, so that a machine that drifts hits all of them alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gorgon.config import EngineSettings
from gorgon.engine.measure import Measured, measure
from gorgon.errors import GorgonError
from gorgon.llama.backend import LlamaBackend
from gorgon.speculation.cost import StepTimes
from gorgon.tune.curve import score

_ROUNDS = 2
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
_CONTEXTS = (32, 512)
_WORTH = 1.03  # a change of settings must bring more than this

Measure = Callable[[EngineSettings], Measured]


@dataclass(frozen=True, slots=True)
class Trial:
    """One value of one knob, with what was measured; ``error`` where it does not run at all."""

    knob: str
    value: Any
    measured: Measured | None
    error: str = ""
    is_chosen: bool = False


@dataclass(slots=True)
class Outcome:
    """The settings found, and every trial on the way."""

    settings: EngineSettings
    measured: Measured
    trials: list[Trial] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


def knobs(settings: EngineSettings, on_gpu: bool) -> dict[str, list[Any]]:
    """The values worth trying, by the name of the setting."""
    if on_gpu:
        return {"flash_attention": [True, False], "cache_type": ["f16", "q8_0"]}
    cores = os.cpu_count() or 1
    threads = sorted({settings.threads, cores, max(1, cores // 2), max(1, 3 * cores // 4)})
    return {
        "cpu_kernels": ["native", "repacked", "plain"],
        "flash_attention": [True, False],
        "threads": threads,
        "cache_type": ["f16", "q8_0"],
    }


def measure_settings(settings: EngineSettings, seconds: float) -> Measured:
    """Load the model under ``settings`` and time its steps.

    Raises:
        GorgonError: when it does not load.
    """
    backend = LlamaBackend(settings)
    try:
        return measure(backend, seconds, sizes=_SIZES, contexts=_CONTEXTS)
    finally:
        backend.close()


def search(
    settings: EngineSettings,
    wanted: dict[str, list[Any]],
    measure_one: Measure,
    advance: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Choose each knob in turn, the others as chosen so far.

    Args:
        settings: where to start.
        wanted: values to try by setting.
        measure_one: times steps under given settings.
        advance: told what was measured after each measurement.
    """
    outcome = Outcome(settings, measure_one(settings))
    advance("start")
    for knob, values in wanted.items():
        others = [v for v in values if v != getattr(outcome.settings, knob)]
        trials = list(_try_all(outcome, knob, others, measure_one, advance))
        _choose(outcome, knob, trials)
    return outcome


def _try_all(
    outcome: Outcome,
    knob: str,
    values: Sequence[Any],
    measure_one: Measure,
    advance: Callable[[str], None],
) -> Iterator[Trial]:
    current = getattr(outcome.settings, knob)
    found: dict[Any, list[Measured]] = {value: [] for value in (current, *values)}
    errors: dict[Any, str] = {}
    for _ in range(_ROUNDS):
        for value, several in found.items():
            if value not in errors:
                try:
                    tried = outcome.settings.model_copy(update={knob: value})
                    several.append(measure_one(tried))
                except GorgonError as problem:
                    errors[value] = str(problem)
            advance(f"{knob} {value}")
    for value, several in found.items():
        failed = errors.get(value, "")
        yield Trial(knob, value, None if failed else _best_of(several), failed)


def _choose(outcome: Outcome, knob: str, trials: list[Trial]) -> None:
    """Take the best trial if it is clearly better than what is set."""
    current = trials[0]
    assert current.measured is not None
    running = [trial for trial in trials if trial.measured is not None]
    best = max(running, key=lambda trial: score(trial.measured.times) if trial.measured else 0.0)
    assert best.measured is not None
    if score(best.measured.times) < _WORTH * score(current.measured.times):
        best = current
    assert best.measured is not None
    outcome.trials += [
        Trial(t.knob, t.value, t.measured, t.error, is_chosen=t is best) for t in trials
    ]
    outcome.measured = best.measured
    if best is not current:
        outcome.settings = outcome.settings.model_copy(update={knob: best.value})
        outcome.changed[knob] = best.value


def _best_of(several: Sequence[Measured]) -> Measured:
    """The shorter of each time in several measurements: whatever interferes only adds."""
    first = several[0]
    tables = [m.times for m in several]
    if any((t.contexts, t.sizes) != (first.times.contexts, first.times.sizes) for t in tables):
        return min(several, key=lambda m: float(m.times.seconds[0][0]))
    seconds = np.min([t.seconds for t in tables], axis=0)
    times = StepTimes(first.times.contexts, first.times.sizes, seconds)
    return Measured(times, min(m.change for m in several), first.propose, first.deepen)
