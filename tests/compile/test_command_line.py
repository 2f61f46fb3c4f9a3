"""``gorgon compile`` as a user runs it: one line and an exit code, interrupts, going on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gorgon.compile import manifest
from gorgon.llama.backend import default_model
from gorgon.llama.quantize import Quantization, quantize

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0


def start(folder: Path, *arguments: str | Path, max_file: int | None = None) -> Running:
    """``gorgon compile`` in ``folder``; no file may become larger than ``max_file`` bytes."""

    def limit() -> None:
        if max_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))

    command = [sys.executable, "-m", "gorgon.cli", "compile", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GORGON_")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,  # noqa: PLW1509 - nothing here has threads
    )
    return Running(process)


class Running:
    """A compilation in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, standard output, lines of standard error."""
        out, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, error.splitlines()

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert self.process.poll() is None, "it ended before it was stopped"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def children(self) -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                yield int(path.parent.name)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


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
    code, out, error = start(tmp_path, *arguments).end()
    assert (code, out, len(error)) == (1, "", 1), error
    assert error[0].startswith("gorgon: ")
    assert message in error[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    running = start(tmp_path, tiny, "--type", "Q8_0", "--out", "out", max_file=500_000)
    code, _, error = running.end()
    assert (code, len(error)) == (1, 1), error
    assert error[0].startswith("gorgon: ")
    assert list(tmp_path.iterdir()) == []


def test_what_was_stopped_goes_on_and_is_whole(tmp_path: Path) -> None:
    """Killed while quantising, stopped by Ctrl-C while measuring, then run to its end."""
    options = ["--type", "Q4_0", "--requantize", "--out", "out", "--tokens", "0", "--threads", "2"]
    command: list[str | Path] = [default_model(), *options]
    workspace, out = tmp_path / "out.part", tmp_path / "out"
    killed = start(tmp_path, *command)
    killed.wait_for(workspace / "model-Q4_0.gguf.part")
    children = list(killed.children())
    killed.process.kill()
    killed.end()
    assert children
    assert not (workspace / "model-Q4_0.gguf").exists()
    assert not out.exists()

    # Long measurements, so that the signal comes in the middle on a busy machine, too.
    stopped = start(tmp_path, *[{"0": "100000"}.get(str(part), part) for part in command])
    stopped.wait_for(workspace / "model-Q4_0.gguf")
    children += stopped.children()
    stopped.process.send_signal(signal.SIGINT)
    code, _, error = stopped.end()
    assert (code, error[-1]) == (130, "gorgon: stopped")
    assert not out.exists()
    assert {path.name for path in workspace.iterdir()} <= {"model-Q4_0.gguf", "stages.json"}

    code, printed, _ = start(tmp_path, *command).end()
    assert code == 0
    assert "quantising" not in printed
    expected = tmp_path / "expected.gguf"
    quantize(default_model(), expected, Quantization("Q4_0", requantize=True), threads=2)
    assert manifest.read(out).model.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.gguf", "out"]
    assert not any(is_running(child) for child in children)
