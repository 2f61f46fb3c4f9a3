"""Whole models: the embedded one decoded by llama.cpp's own kernels and by ours.

Each check runs in a process of its own, as ggml asks for buffer types once, at its first model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gorgon.errors import ModelError
from gorgon.llama.backend import default_model
from gorgon.llama.kernels import _library_path, _StayOutError

ROOT = Path(__file__).parent.parent.parent


def model() -> Path:
    try:
        _library_path()
        return default_model()
    except (ModelError, _StayOutError) as missing:
        pytest.skip(str(missing))


def run(script: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    prelude = (
        "import numpy as np, llama_cpp.llama_cpp as llama\n"
        "from pathlib import Path\n"
        "from gorgon.llama import kernels\n"
        "from benchmarks.kernels import Session, quiet\n"
        "llama.llama_log_set(quiet, None); llama.llama_backend_init()\n"
        "status = kernels.load()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", prelude + script],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def needs(isa: str) -> dict[str, str]:
    status = run("print(status.active)", GORGON_KERNELS_ISA=isa)
    if status.strip() != "True":
        pytest.skip(f"this processor does not run {isa}")
    return {"GORGON_KERNELS_ISA": isa}


SHAPES = """
path = Path({path!r})
s = Session(path, weights=True, attention=True, context=200, threads=2)
tokens = [1000 + 7 * i for i in range(9)]
def decode(ids, positions, sequences=None):
    s.decode([tokens[i] for i in ids], positions, sequences)
    return s.logits(len(ids))
chain = decode(range(9), range(200, 209)); s.rewind()
for sizes in ([1] * 9, [2, 3, 4], [8, 1], [5, 4]):
    rows, at = [], 0
    for size in sizes:
        rows.append(decode(range(at, at + size), range(200 + at, 200 + at + size))); at += size
    s.rewind()
    assert np.array_equal(np.concatenate(rows), chain), sizes

# a tree: two branches behind a root; the second is accepted, with the first one's cells in between
for branch in (1, 2):
    llama.llama_memory_seq_cp(s.memory, 0, branch, -1, -1)
ids, positions = [0, 5, 1, 6, 2], [200, 201, 201, 202, 202]
tree = decode(ids, positions, [[0, 1, 2], [1], [2], [1], [2]])
assert np.array_equal(tree[[0, 2, 4]], chain[:3])
after = decode([3], [203], [[2]])
assert np.array_equal(after[0], chain[3]), "hidden cells left a trace"
print("exact")
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_logits_are_the_same_bits_whatever_the_batch(isa: str) -> None:
    path = str(model())
    assert run(SHAPES.format(path=path), **needs(isa)).strip() == "exact"


THREADS = """
s = Session(Path({path!r}), weights=True, attention=True, context=100, threads=1)
rows = []
for threads in (1, 2, 3):
    llama.llama_set_n_threads(s.handle, threads, threads)
    rows.append([])
    for n in (3, 12, 40):  # activations quantised by every thread, and shared out
        s.step(n)
        rows[-1].append(s.logits(n))
for n, *found in zip((3, 12, 40), *rows):
    assert all(np.array_equal(found[0], other) for other in found[1:]), n
print("exact")
"""


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_logits_are_the_same_bits_whatever_the_threads(isa: str) -> None:
    assert run(THREADS.format(path=str(model())), **needs(isa)).strip() == "exact"


AGAINST_STOCK = """
path = Path({path!r})
for cache in ("f16", "q8_0"):
    rows = []
    for weights, attention in ((False, False), (True, True), (False, True)):
        s = Session(path, weights=weights, attention=attention, context=300, threads=1, cache=cache)
        s.decode(range(2000, 2016), range(300, 316)); rows.append(s.logits(16)); s.close()
    size = np.linalg.norm(rows[0], axis=1)
    for other, limit in ((rows[1], 0.08), (rows[2], 0.08)):
        distance = np.linalg.norm(other - rows[0], axis=1) / size
        assert distance.max() < limit, distance
print("close")
"""


def test_logits_are_close_to_those_of_llama_cpp() -> None:
    assert run(AGAINST_STOCK.format(path=str(model()))).strip() == "close"


def test_without_them_everything_works() -> None:
    script = f"""
s = Session(Path({str(model())!r}), weights=True, attention=True, context=20, threads=1)
s.step(3); print(status.active, status.reason)
"""
    assert run(script, GORGON_KERNELS="0").strip() == "False GORGON_KERNELS=0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("kernels.LLAMA_CPP_PYTHON = '0.3.99'", "built for llama-cpp-python 0.3.99"),
        ("kernels.GGML_VERSION = '9.9'", "built for ggml 9.9"),
        ("kernels.GGML_LIBRARIES = ('libnothing.so',) * 2", "libnothing.so"),
    ],
)
def test_a_mismatch_stays_out(change: str, reason: str) -> None:
    _ = model()
    found = run(f"kernels.load.cache_clear(); {change}\nprint(kernels.load())", GORGON_KERNELS="1")
    assert "active=False" in found
    assert reason in found


def test_a_build_without_them_stays_out() -> None:
    found = run("print(status)", GORGON_KERNELS_LIBRARY="/nowhere.so")
    assert "the native library was not built" in found


def test_an_unknown_instruction_set_stays_out() -> None:
    _ = model()
    assert "does not run sse" in run("print(status)", GORGON_KERNELS_ISA="sse")
