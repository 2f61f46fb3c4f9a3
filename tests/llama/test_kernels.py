"""The serving path runs on our kernels where they are, and on llama.cpp's own where not.

Each check runs in a process of its own: ggml asks for kernels once, at its first model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gorgon.errors import ModelError
from gorgon.llama import kernels
from gorgon.llama.backend import default_model

ROOT = Path(__file__).parent.parent.parent

SERVE = """
import json, re
from pathlib import Path
from gorgon.config import EngineSettings
from gorgon.engine.load import load
from gorgon.llama import kernels
from gorgon.request import Request, SpeculationParams

loaded = load(EngineSettings(num_cells=1024, threads=1))
text = "Why is the sky blue? Because"
prompt = tuple(loaded.model.tokenize(text, add_special=True, parse_special=False))
before = kernels.num_operations()
texts = {}
for name, mode, tree in (("normal", "normal", None), ("medusa", "medusa", ((0,), (0, 0), (1,)))):
    speculation = SpeculationParams(mode=mode, tree=tree)
    loaded.engine.submit(Request(name, prompt, 24, speculation=speculation, ignore_eos=True))
    tokens, steps = [], 0
    while loaded.engine.has_work:
        for result in loaded.engine.step():
            tokens += result.tokens
        steps += 1
    texts[name] = tokens, steps
after = kernels.num_operations()
kilobytes = dict(re.findall(r"(\\w+):\\s+(\\d+) kB", Path("/proc/self/status").read_text()))
print(json.dumps({
    "isa": kernels.load().isa,
    "operations": [b - a for a, b in zip(before, after)],
    "texts": texts,
    "megabytes": int(kilobytes["VmRSS"]) / 1000,
}))
"""


def serve(**environment: str) -> dict[str, Any]:
    """What an engine on the default model did in a fresh process."""
    found = subprocess.run(
        [sys.executable, "-c", SERVE],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    try:
        default_model()
    except ModelError as missing:
        pytest.skip(str(missing))
    if not kernels.load().active:
        pytest.skip(kernels.load().reason)
    return serve()


@pytest.fixture(scope="module")
def stock(ours: dict[str, Any]) -> dict[str, Any]:
    return serve(GORGON_KERNELS="0")


def test_the_engine_computes_with_our_kernels(ours: dict[str, Any]) -> None:
    assert ours["isa"] == kernels.load().isa
    products, attentions = ours["operations"]
    passes = 1 + sum(steps for _, steps in ours["texts"].values())  # the prompt, and the steps
    assert attentions == 30 * passes  # layers of the default model
    assert products >= 7 * attentions


def test_trees_give_the_text_of_plain_decoding(ours: dict[str, Any]) -> None:
    (normal, plain_steps), (medusa, tree_steps) = ours["texts"].values()
    assert medusa == normal
    assert len(normal) == 24
    assert tree_steps < plain_steps


def test_zero_keeps_them_out(stock: dict[str, Any]) -> None:
    assert stock["isa"] is None
    assert stock["operations"] == [0, 0]
    assert len(stock["texts"]["normal"][0]) == 24


def test_packed_weights_take_the_place_of_the_file(
    ours: dict[str, Any], stock: dict[str, Any]
) -> None:
    assert ours["megabytes"] < 1.1 * stock["megabytes"]
