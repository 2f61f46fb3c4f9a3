"""``gorgon compile`` as a user runs it: one line and an exit code, interrupts, going on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gorgon.compile import manifest
from gorgon.llama.backend import default_model
from gorgon.llama.quantize import Quantization, quantize
from tests.running import is_running, start

FAULTS = {
    "no such file": (["nowhere.gguf"], "neither a folder nor a GGUF file"),
    "no model folder": (["empty"], "not a model folder"),
    "no GGUF": (["notes.txt"], "notes.txt"),
    "unknown type": (["tiny.gguf", "--type", "Q9_X"], "knows no type 'Q9_X'"),
    "unknown tensor type": (["tiny.gguf", "--tensor-type", "attn_v=Q9"], "no type 'Q9'"),
    "architecture": (["gpt2"], "'GPT2LMHeadModel' is not supported"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_leave_nothing(tiny: Path, tmp_path: Path, fault: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "gpt2").mkdir()
    config = {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "tiny.gguf").symlink_to(tiny)
    before = sorted(tmp_path.rglob("*"))
    arguments, message = FAULTS[fault]
    code, out, error = start(tmp_path, "compile", *arguments).end()
    assert (code, out, len(error)) == (1, "", 1), error
    assert error[0].startswith("gorgon: ")
    assert message in error[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    running = start(tmp_path, "compile", tiny, "--type", "Q8_0", "--out", "out", max_file=500_000)
    code, _, error = running.end()
    assert (code, len(error)) == (1, 1), error
    assert error[0].startswith("gorgon: ")
    assert list(tmp_path.iterdir()) == []


def test_what_was_stopped_goes_on_and_is_whole(tmp_path: Path) -> None:
    """Killed while quantising, stopped by Ctrl-C while measuring, then run to its end."""
    options = ["--type", "Q4_0", "--requantize", "--out", "out", "--tokens", "0", "--threads", "2"]
    command: list[str | Path] = [default_model(), *options]
    workspace, out = tmp_path / "out.part", tmp_path / "out"
    killed = start(tmp_path, "compile", *command)
    killed.wait_for((workspace / "model-Q4_0.gguf.part").exists)
    children = list(killed.children())
    killed.process.kill()
    killed.end()
    assert children
    assert not (workspace / "model-Q4_0.gguf").exists()
    assert not out.exists()

    # Long measurements, so that the signal comes in the middle on a busy machine, too.
    stopped = start(
        tmp_path, "compile", *[{"0": "100000"}.get(str(part), part) for part in command]
    )
    stopped.wait_for((workspace / "model-Q4_0.gguf").exists)
    children += stopped.children()
    stopped.process.send_signal(signal.SIGINT)
    code, _, error = stopped.end()
    assert (code, error[-1]) == (130, "gorgon: stopped")
    assert not out.exists()
    assert {path.name for path in workspace.iterdir()} <= {"model-Q4_0.gguf", "stages.json"}

    code, printed, _ = start(tmp_path, "compile", *command).end()
    assert code == 0
    assert "quantising" not in printed
    expected = tmp_path / "expected.gguf"
    quantize(default_model(), expected, Quantization("Q4_0", requantize=True), threads=2)
    assert manifest.read(out).model.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.gguf", "out"]
    assert not any(is_running(child) for child in children)
