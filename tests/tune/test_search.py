"""Tuning finds what is fastest, keeps it, and serving takes it up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gorgon.config import EngineSettings
from gorgon.engine import tuned
from gorgon.engine.measure import Measured
from gorgon.errors import ModelError
from gorgon.speculation.cost import StepTimes
from gorgon.tune import report
from gorgon.tune.curve import batch_rate, fixed_sizes, score, single_rate
from gorgon.tune.search import knobs, search

SIZES = (1, 2, 4, 8, 16)


def measured(first: float, slope: float, change: float = 0.0) -> Measured:
    row = [first + slope * (n - 1) for n in SIZES]
    return Measured(StepTimes((32, 512), SIZES, np.array([row, row])), change)


def made_up(settings: EngineSettings) -> Measured:
    """Two threads are best; plain kernels are slow; a quantised cache does not run."""
    if settings.cache_type == "q8_0":
        raise ModelError("no room")
    first = {1: 0.02, 2: 0.01, 4: 0.015}[settings.threads]
    slope = {"native": 0.001, "repacked": 0.002, "plain": 0.008}[settings.cpu_kernels]
    return measured(first, slope)


def test_each_knob_gets_its_best_value() -> None:
    start = EngineSettings(threads=4, cpu_kernels="plain")
    wanted: dict[str, list[Any]] = {
        "cpu_kernels": ["native", "repacked", "plain"],
        "threads": [1, 2, 4],
        "cache_type": ["f16", "q8_0"],
    }
    outcome = search(start, wanted, made_up)
    assert outcome.changed == {"cpu_kernels": "native", "threads": 2}
    assert (outcome.settings.cpu_kernels, outcome.settings.threads) == ("native", 2)
    assert [t.error for t in outcome.trials if t.value == "q8_0"] == ["no room"]
    assert sum(trial.is_chosen for trial in outcome.trials) == len(wanted)


def test_a_hardly_better_value_changes_nothing() -> None:
    outcome = search(
        EngineSettings(threads=2),
        {"threads": [2, 4]},
        lambda s: measured(0.0100 if s.threads == 2 else 0.0099, 0.001),
    )
    assert outcome.changed == {}


def test_the_score_prefers_flat_curves_and_short_steps() -> None:
    assert score(measured(0.01, 0.0001).times) > score(measured(0.01, 0.001).times)
    assert score(measured(0.01, 0.001).times) > score(measured(0.02, 0.001).times)
    steep = measured(0.01, 0.01).times
    assert single_rate(steep) == pytest.approx(100)
    assert batch_rate(steep) == pytest.approx(8 / 0.08)


def test_fixed_sizes_where_changes_cost() -> None:
    times = measured(0.01, 0.0).times
    assert fixed_sizes(times, change=0.0001, captures_graphs=True) == ()
    assert fixed_sizes(times, change=0.003, captures_graphs=True)[:3] == (1, 2, 4)


def test_a_processor_keeps_to_no_size_whatever_a_change_costs() -> None:
    assert fixed_sizes(measured(0.01, 0.0).times, change=0.003, captures_graphs=False) == ()


def test_a_graphics_card_has_no_processor_knobs() -> None:
    assert "threads" not in knobs(EngineSettings(), on_gpu=True)
    assert "cpu_kernels" in knobs(EngineSettings(), on_gpu=False)


def test_what_was_found_is_taken_up_unless_said_otherwise(tmp_path: Path) -> None:
    settings = EngineSettings(profile_folder=tmp_path)
    assert tuned.read(settings) == settings
    tuned.write(settings, {"flash_attention": False, "threads": 1, "batch_sizes": (1, 2)})
    found = tuned.read(settings)
    assert (found.flash_attention, found.threads, found.batch_sizes) == (False, 1, (1, 2))
    said = EngineSettings(profile_folder=tmp_path, threads=3)
    assert (tuned.read(said).threads, tuned.read(said).flash_attention) == (3, False)


@pytest.mark.parametrize("content", ["{", "[]", '{"threads": 0}', '{"model": "/etc/passwd"}'])
def test_damaged_or_foreign_findings_are_left_alone(tmp_path: Path, content: str) -> None:
    settings = EngineSettings(profile_folder=tmp_path)
    tuned.write(settings, {}).write_text(content)
    assert tuned.read(settings) == settings


def test_the_table_names_every_trial_and_the_reason_of_failures() -> None:
    wanted: dict[str, list[Any]] = {"threads": [1, 2], "cache_type": ["q8_0"]}
    outcome = search(EngineSettings(threads=1), wanted, made_up)
    console = Console(record=True, width=100, file=io.StringIO())
    report.print_outcome(console, outcome)
    text = console.export_text()
    assert "cache_type = q8_0 does not run: no room" in text
    assert "2 <" in text
