"""A tiny GGUF made here, and, where the converter is installed, a Vicuna-like checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from rich.console import Console

from gorgon.compile import child, converter, job, measure
from gorgon.compile.progress import OnProgress

# Settings from the environment are taken away from tests; this one only says where a tool lies.
NAMED = os.environ.get("GORGON_CONVERTER")
WIDTH, INSIDE, LAYERS, HEADS = 256, 512, 2, 4


def write_tiny(path: Path, seed: int = 0) -> Path:
    """A Llama of random weights in F16 whose tokens are the bytes, and a few more."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for name, value in (
        ("context_length", 512),
        ("embedding_length", WIDTH),
        ("block_count", LAYERS),
        ("feed_forward_length", INSIDE),
        ("rope.dimension_count", WIDTH // HEADS),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", HEADS),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "e", "t"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 3 + [0.0] * 256 + [-1.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32) * 0.08
        writer.add_tensor(name, values.astype(np.float16))

    add("token_embd.weight", len(tokens), WIDTH)
    add("output.weight", len(tokens), WIDTH)
    writer.add_tensor("output_norm.weight", random.uniform(0.8, 1.2, WIDTH).astype(np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", INSIDE, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INSIDE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-F16.gguf")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run here instead of in children, and times are taken from few steps."""

    def run_job(name: str, arguments: dict[str, Any], on_progress: OnProgress) -> child.Done:
        copied = json.loads(json.dumps(arguments))
        return child.Done(job.JOBS[name](copied, on_progress), peak_memory=1)

    monkeypatch.setattr(child, "run_job", run_job)
    monkeypatch.setattr(measure, "SECONDS_A_SIZE", 0.0)


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="session")
def converter_python() -> Path:
    if NAMED is not None:
        os.environ["GORGON_CONVERTER"] = NAMED
    python = converter.find()
    if python is None:
        pytest.skip("the converter is not installed: gorgon compile installs it on first use")
    return python


def run_vicuna(python: Path, *arguments: str) -> None:
    """``vicuna.py`` in the converter's environment."""
    script = Path(__file__).with_name("vicuna.py")
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def vicuna(converter_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with Vicuna's config, scaled down."""
    folder = tmp_path_factory.mktemp("vicuna") / "vicuna-tiny"
    run_vicuna(converter_python, "model", str(folder))
    return folder


@pytest.fixture(scope="session")
def f16(converter_python: Path, vicuna: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint as the converter writes it."""
    path = tmp_path_factory.mktemp("f16") / "vicuna-tiny-F16.gguf"
    converter.convert(converter_python, vicuna, path, "F16", lambda fraction: None)
    return path


def encode_with_sentencepiece(python: Path, folder: Path, texts: list[str]) -> list[list[int]]:
    """Ids of SentencePiece itself, no special tokens."""
    code = (
        "import json, sys, sentencepiece as s;"
        "p = s.SentencePieceProcessor(model_file=sys.argv[1]);"
        "print(json.dumps([p.encode(t) for t in json.loads(sys.argv[2])]))"
    )
    arguments = [str(folder / "tokenizer.model"), json.dumps(texts)]
    done = subprocess.run(
        [python, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    ids: list[list[int]] = json.loads(done.stdout)
    return ids
