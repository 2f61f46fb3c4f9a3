"""Files that cannot be served: one line that names the file and the remedy, never a dead process.

Every file is a tiny model or its heads with one thing wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gorgon.config import EngineSettings
from gorgon.errors import GorgonError, HeadsError, ModelError
from gorgon.llama.backend import LlamaBackend
from tests.tiny import NUM_EMBD, NUM_VOCAB, make_backend, write_heads, write_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "base.gguf")


def refusal(kind: type[GorgonError], model: Path, heads: Path | None = None) -> str:
    """What is said when the files are loaded: one line that names the culprit."""
    settings = EngineSettings(model=model, heads=heads, num_cells=256, threads=1)
    with pytest.raises(kind) as refused:
        LlamaBackend(settings).close()
    message = str(refused.value)
    assert str(heads or model) in message
    assert "\n" not in message
    return message


def test_the_tiny_model_is_fine(tmp_path: Path) -> None:
    backend = make_backend(tmp_path)
    assert (backend.num_vocab, backend.num_heads, backend.max_position) == (NUM_VOCAB, 3, 256)
    backend.close()


# -- models ---------------------------------------------------------------------------------------


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(ModelError, tmp_path / "none.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    assert "directory" in refusal(ModelError, tmp_path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\3\4 a safetensors file", b"\0" * 4096])
def test_other_files_are_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    assert "not a GGUF file" in refusal(ModelError, path)


@pytest.mark.parametrize("length", [4, 8, 20, 24, 100, 2000, 5000])
def test_a_truncated_header_is_damaged(tmp_path: Path, base: Path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(base.read_bytes()[:length])
    assert "damaged GGUF header" in refusal(ModelError, path)


@pytest.mark.parametrize("missing", [1, 100, 50_000])
def test_truncated_weights_are_told_from_a_damaged_header(
    tmp_path: Path, base: Path, missing: int
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(base.read_bytes()[:-missing])
    message = refusal(ModelError, path)
    assert "truncated" in message
    assert "download it again" in message


@pytest.mark.parametrize("architecture", ["gemma", "mamba", "bert", "clip", "medusa", "nonsense"])
def test_other_architectures_are_out_of_scope(tmp_path: Path, architecture: str) -> None:
    path = write_model(tmp_path / "m.gguf", architecture=architecture)
    message = refusal(ModelError, path)
    assert f"architecture '{architecture}' is not served" in message
    assert "Llama" in message


def test_a_sliding_window_is_out_of_scope(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", change={"attention.sliding_window": 64})
    assert "sliding-window attention is not served" in refusal(ModelError, path)


DAMAGE: list[dict[str, Any]] = [
    # These abort the process inside llama.cpp if they reach it.
    {"block_count": 0},
    {"block_count": 2**32 - 1},
    {"expert_count": 2**31},
    {"attention.layer_norm_rms_epsilon": float("nan")},
    {"attention.layer_norm_rms_epsilon": -1.0},
    # These it refuses itself.
    {"block_count": 1},
    {"block_count": 100},
    {"block_count": "two"},
    {"attention.head_count": 0},
    {"attention.head_count": 3},
    {"attention.head_count": 2**31},
    {"attention.head_count_kv": 2**32 - 1},
    {"embedding_length": 0},
    {"embedding_length": 128},
    {"feed_forward_length": 2**31},
    {"context_length": "many"},
    {"attention.key_length": 2**31},
    {"rope.dimension_count": 31},
]


@pytest.mark.parametrize("change", DAMAGE, ids=str)
def test_impossible_sizes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_model(tmp_path / "m.gguf", change=change)
    message = refusal(ModelError, path)
    assert "download or convert it again" in message


@pytest.mark.parametrize(
    "name",
    [
        "vocabulary",
        "attention.layer_norm_rms_epsilon",
        "token_embd.weight",
        "output_norm.weight",
        "blk.1.attn_k.weight",
    ],
)
def test_missing_parts_are_refused(tmp_path: Path, name: str) -> None:
    refusal(ModelError, write_model(tmp_path / "m.gguf", without=frozenset([name])))


@pytest.mark.parametrize("num_cells", [64, 100, 255, 256, 300])
def test_small_caches_work(tmp_path: Path, num_cells: int) -> None:
    backend = make_backend(tmp_path, num_cells=num_cells)
    assert backend.num_cells == num_cells
    backend.close()


# -- heads ----------------------------------------------------------------------------------------


def test_missing_heads_are_named(tmp_path: Path, base: Path) -> None:
    assert "No such file" in refusal(HeadsError, base, tmp_path / "none.medusa.gguf")


def test_a_model_is_no_heads_file(tmp_path: Path, base: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    assert "general.architecture" in refusal(HeadsError, base, path)


@pytest.mark.parametrize("missing", [1, 1000, 20_000])
def test_truncated_heads_are_refused(tmp_path: Path, base: Path, missing: int) -> None:
    path = write_heads(tmp_path / "h.gguf", base)
    path.write_bytes(path.read_bytes()[:-missing])
    assert "truncated" in refusal(HeadsError, base, path)


def test_heads_of_a_fine_tune_are_refused(tmp_path: Path, base: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=2)
    heads = write_heads(tmp_path / "h.gguf", other)
    message = refusal(HeadsError, base, heads)
    assert "made for another model of the same size" in message
    assert "train heads for this one" in message


def test_heads_of_another_width_are_refused(tmp_path: Path, base: Path) -> None:
    heads = write_heads(tmp_path / "h.gguf", base)
    model = write_model(tmp_path / "wide.gguf", num_embd=128)
    message = refusal(HeadsError, model, heads)
    assert "made for another model" in message
    assert "medusa.embedding_length 64" in message


def zeros(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros(shape, np.float32)


def block(head: int, width: int = NUM_EMBD) -> dict[str, Any]:
    return {
        f"head.{head}.block.0.weight": zeros(width, width),
        f"head.{head}.block.0.bias": zeros(width),
    }


def ids(*tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


BAD_HEADS: dict[str, dict[str, Any]] = {
    "no head": {"num_heads": 0},
    "17 heads": {"num_heads": 17},
    "4 billion heads": {"num_heads": 2**32 - 1},
    "4 billion blocks": {"num_blocks": 2**32 - 1},
    "two blocks, one there": {"num_blocks": 2},
    "four heads, three there": {"num_heads": 4},
    "variant": {"variant": "hydra"},
    "output": {"output": "none"},
    "own output missing": {"output": "own", "tensors": block(0) | block(1) | block(2)},
    "blocks of another width": {"tensors": block(0, 96) | block(1) | block(2), "output": "shared"},
    "token out of range": {"token_ids": ids(0, NUM_VOCAB)},
    "empty map": {"token_ids": ids()},
    "token negative": {"token_ids": ids(0, -1)},
    "map and output differ": {"token_ids": ids(*range(16))},
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_heads_that_do_not_fit_are_refused(tmp_path: Path, base: Path, name: str) -> None:
    path = write_heads(tmp_path / "h.gguf", base, **BAD_HEADS[name])
    refusal(HeadsError, base, path)


# -- the command line -----------------------------------------------------------------------------


def gorgon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gorgon.cli", *map(str, arguments)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("GORGON_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cut(tmp_path: Path) -> Path:
    path = write_model(tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    return path


def other(tmp_path: Path) -> Path:
    return write_model(tmp_path / "gemma.gguf", architecture="gemma")


@pytest.mark.parametrize("verb", [("generate", "hello"), ("serve", "--port", "0")], ids=str)
@pytest.mark.parametrize("make", [cut, other])
def test_the_command_line_says_one_line_and_exits_with_1(
    tmp_path: Path, verb: tuple[str, ...], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    done = gorgon(*verb, "--model", path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"gorgon: {path}: ")
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout


def test_the_command_line_names_heads_of_another_model(tmp_path: Path, base: Path) -> None:
    heads = write_heads(tmp_path / "h.gguf", write_model(tmp_path / "other.gguf", seed=2))
    done = gorgon("serve", "--port", "0", "--model", base, "--heads", heads)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"gorgon: {heads}: made for another")
