"""Heads of `gorgon train` for a converted model, through compile, serve and /compare, by command.

Needs the converter's environment and, in our own, PyTorch.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gorgon.bench.servers import free_port, start
from gorgon.compile.model import compile_model
from gorgon.compile.order import Order
from gorgon.llama.quantize import Quantization

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("in_process")

GORGON = [sys.executable, "-m", "gorgon.cli"]
WORDS = ("why", "how", "what", "is", "the", "sky", "blue", "import", "return", "class", "step")
SIZES = {"num-heads": 2, "num-hidden": 128, "num-outputs": 512, "max-tokens": 32}
TRAINING = {**SIZES, "epochs": 4, "batch-size": 128, "matrix-type": "Q8_0", "device": "cpu"}


def train(model: Path, folder: Path) -> Path:
    """Heads for ``model``, from its answers to words thrown together."""
    drawn = random.Random(1)
    prompts, out = folder / "prompts.txt", folder / "vicuna.medusa.gguf"
    prompts.write_text("\n".join(" ".join(drawn.choices(WORDS, k=6)) for _ in range(80)))
    options = [text for name, value in TRAINING.items() for text in (f"--{name}", str(value))]
    files = ["--model", str(model), "--prompts", str(prompts), "--out", str(out)]
    command = [*GORGON, "train", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def compare(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/compare", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def test_trained_heads_are_compiled_served_and_right(
    f16: Path, tmp_path: Path, console: Console
) -> None:
    heads = train(f16, tmp_path)
    order = Order(str(f16), tmp_path / "out", Quantization("Q8_0"), heads=heads, num_tokens=0)
    folder, port = compile_model(order, console), free_port()
    command = [*GORGON, "serve", str(folder), "--port", str(port)]
    environment = {"GORGON_MEASURE_SECONDS": "0.5", "GORGON_THREADS": "1"}
    with start(command, port, "/ready", {**os.environ, **environment}) as server:
        body = {"prompt": "Why is the sky blue?", "max_length": 48, "tree": [[0], [0, 0]]}
        answer = compare(server.url, body)
    assert answer["same_text"]
    assert answer["medusa"]["acceptance_rate"] > 20
