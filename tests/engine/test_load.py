"""Which heads draft: those given, else the shipped ones where they were made for the model."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from gorgon.config import EngineSettings
from gorgon.engine.load import load
from gorgon.engine.measure import Measured
from gorgon.llama.backend import DEFAULT_HEADS, default_model
from gorgon.llama.quantize import Quantization, quantize
from gorgon.request import Request, SpeculationParams
from gorgon.speculation.cost import StepTimes
from tests.tiny import write_heads, write_model


@pytest.fixture(autouse=True)
def _no_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    times = StepTimes((32,), (1, 2, 4, 8), np.full((1, 4), 1e-3))
    monkeypatch.setattr("gorgon.engine.load.measure_once", lambda *_: Measured(times, 0.0))


def settings(**given: Path) -> EngineSettings:
    return EngineSettings(num_cells=256, threads=2, **given)  # type: ignore[arg-type]


def test_the_shipped_heads_draft_for_their_model_in_any_type(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = tmp_path / "again-Q4_0.gguf"
    quantize(default_model(), again, Quantization("Q4_0", requantize=True), threads=2)
    caplog.set_level(logging.INFO, "gorgon")
    loaded = load(settings(model=again))
    try:
        assert loaded.backend.heads_path == DEFAULT_HEADS
        assert f"heads {DEFAULT_HEADS} (shipped, made for this model)" in caplog.text
        engine = loaded.engine
        prompt = tuple(loaded.model.tokenize("The sun", add_special=True, parse_special=False))
        tree = SpeculationParams(tree=((0,), (0, 0)))
        engine.submit(Request("r", prompt, 24, speculation=tree, ignore_eos=True))
        accepted = 0
        while engine.has_work:
            accepted += sum(r.stats.accepted for r in engine.step() if r.stats is not None)
        assert accepted > 2
    finally:
        loaded.backend.close()


def test_another_model_gets_no_heads_but_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_model(tmp_path / "base.gguf")
    heads = write_heads(tmp_path / "h.gguf", base)
    for given, path, line in (
        ({}, None, "no heads for this model"),
        ({"heads": heads}, heads, f"heads {heads} (as asked for)"),
    ):
        caplog.set_level(logging.INFO, "gorgon")
        loaded = load(settings(model=base, **given))
        assert loaded.backend.heads_path == path
        assert line in caplog.text
        loaded.backend.close()
