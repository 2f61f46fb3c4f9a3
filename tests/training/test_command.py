"""`gorgon train` as a command, on a tiny model: a full disk, going on, what is said at the end."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from gorgon.config import EngineSettings
from gorgon.errors import TrainingError
from gorgon.llama.model import Model
from gorgon.training.prompts import Encode
from gorgon.training.stages import Stages
from tests.tiny import write_model

pytest.importorskip("torch", reason="needs PyTorch: scripts/setup --train")

from gorgon.training.settings import TrainingSettings
from gorgon.training.train import train

SIZES = {"num-heads": 2, "num-hidden": 64, "num-outputs": 256, "max-tokens": 24, "epochs": 1}
TRAINING = {**SIZES, "batch-size": 64, "matrix-type": "Q8_0", "device": "cpu"}
STAGES = ["loading", "answers", "heads", "file, report", "in all"]


def run(folder: Path, max_bytes: int | None = None) -> tuple[int, str]:
    """Exit code and stderr of a training in which no file may grow over ``max_bytes``."""
    options = [text for name, value in TRAINING.items() for text in (f"--{name}", str(value))]
    files = ["--model", str(folder / "m.gguf"), "--prompts", str(folder / "p.txt")]
    command = [sys.executable, "-m", "gorgon.cli", "train", *files, *options]
    limit = None
    if max_bytes is not None:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    done = subprocess.run(
        [*command, "--out", str(folder / "h.medusa.gguf")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GORGON_THREADS": "1"},
    )
    return done.returncode, done.stderr


def test_a_full_disk_stops_training_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    (tmp_path / "p.txt").write_text("\n".join(f"word{i % 13} and {i}" for i in range(40)))
    work = tmp_path / "h.medusa.gguf.work"
    for max_bytes in (60_000, 1_000_000):  # no room for all states, for a checkpoint
        code, said = run(tmp_path, max_bytes)
        assert code == 1, said
        assert "make room and run the same command again" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert [path for path in tmp_path.glob("h.*") if path != work] == []
        assert not list(work.rglob("*.part"))
    code, said = run(tmp_path)
    assert code == 0, said
    assert re.findall(r"^([a-z, ]+?) +\d+\.\d s$", said, re.MULTILINE) == STAGES
    assert {path.name for path in tmp_path.glob("h.*")} == {
        "h.medusa.gguf",
        "h.medusa.txt",
        "h.medusa.png",
    }


def test_a_folder_is_no_heads_file(tmp_path: Path) -> None:
    settings = TrainingSettings(prompts=tmp_path / "p.txt", out=tmp_path, device="cpu")
    model, encode = cast(Model, None), cast(Encode, None)  # refused before these are asked
    with pytest.raises(TrainingError, match="is a folder"):
        train(settings, EngineSettings(), model, encode, Stages())


def test_bad_prompts_leave_no_folder_behind(tmp_path: Path) -> None:
    settings = TrainingSettings(prompts=tmp_path / "p", out=tmp_path / "h", device="cpu")
    model, encode = cast(Model, None), cast(Encode, None)
    with pytest.raises(TrainingError, match="No such file"):
        train(settings, EngineSettings(), model, encode, Stages())
    assert list(tmp_path.iterdir()) == []


def test_what_only_conditioned_heads_have_is_refused_for_others(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="window is of conditioned heads only"):
        TrainingSettings(prompts=tmp_path, out=tmp_path, variant="medusa", window=3)
