"""Checkpoint folders: what is complete, and what is wrong with the others."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from gorgon.compile import checkpoint
from gorgon.compile.model import compile_model
from gorgon.compile.order import Order
from gorgon.errors import CompileError
from tests.compile.checkpoints import write_torch

CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.model").write_bytes(b"x")
    for name in SHARDS:
        save_file({name: np.zeros((4, 8), np.float16)}, path / name)
    index = {"weight_map": {name: name for name in SHARDS}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_a_complete_folder_is_described(folder: Path) -> None:
    found = checkpoint.inspect(folder)
    assert [path.name for path in found.weights] == list(SHARDS)
    assert (found.half_type, found.num_parameters, found.half_size) == ("F16", 64, 128)


def configure(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def cut(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-10])


def lie(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F16", "shape": [9, 9], "data_offsets": [0, 4]}}).encode()
    (folder / SHARDS[0]).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def pack_as_bin(folder: Path, size: int | None = None) -> None:
    """The same as PyTorch files, the second cut to ``size`` bytes."""
    for name in (*SHARDS, "model.safetensors.index.json"):
        (folder / name).unlink()
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        write_torch(folder / name, {name: np.zeros((4, 8), np.float32)}, "F16")
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def test_pytorch_files_are_described_too(folder: Path) -> None:
    pack_as_bin(folder)
    found = checkpoint.inspect(folder)
    assert [path.suffix for path in found.weights] == [".bin", ".bin"]
    assert found.half_type == "F16"


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder: config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "architecture": (configure(architectures=["GPT2LMHeadModel"]), "'GPT2LMHeadModel'"),
    "no architecture": (configure(architectures=None), "architecture 'None'"),
    "sliding window": (configure(sliding_window=1024), "sliding-window"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "no tokenizer"),
    "missing shard": (lambda f: (f / SHARDS[1]).unlink(), "1 of 2 shards missing: model-00002"),
    "truncated": (cut, "corrupt safetensors file"),
    "empty file": (lambda f: (f / SHARDS[0]).write_bytes(b""), "corrupt safetensors file"),
    "noise": (lambda f: (f / SHARDS[0]).write_bytes(b"\xff" * 99), "corrupt safetensors file"),
    "truncated .bin": (lambda f: pack_as_bin(f, 300), "00002.bin: corrupt PyTorch file"),
    "empty .bin": (lambda f: pack_as_bin(f, 0), "00002.bin: corrupt PyTorch file"),
    "wrong size": (lie, "wrong size"),
    "index outside": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../../etc/passwd"}}'
        ),
        "outside the folder",
    ),
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    folder: Path, fault: str, console: Console
) -> None:
    break_it, message = FAULTS[fault]
    break_it(folder)
    out = folder.parent / "out"
    with pytest.raises(CompileError, match=message) as caught:
        compile_model(Order(str(folder), out), console)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_missing_shard_shows_without_an_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / SHARDS[0]).unlink()
    with pytest.raises(CompileError, match="1 of 2 shards"):
        checkpoint.inspect(folder)
