"""A Llama of a few thousand random weights with heads: the real llama.cpp in milliseconds.

Its vocabulary is every byte and a few words. What it writes makes no sense: mostly each token has
one that follows it, which the heads know, and the layers disturb that. It has everything that a
model file has, and what it has can be left out or made wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gorgon.compile.sidecar import Sidecar
from gorgon.compile.sidecar import write as write_sidecar
from gorgon.config import EngineSettings
from gorgon.llama.backend import LlamaBackend
from gorgon.llama.model import inspect

NUM_EMBD, NUM_HEADS, NUM_LAYERS, NUM_FF = 64, 2, 2, 96
WORDS = tuple(f"▁word{i}" for i in range(13))
NUM_VOCAB = 3 + 256 + len(WORDS)
CONTEXT = 256

Keys = dict[str, Any]
Matrix = npt.NDArray[np.float32]


def write_model(
    path: Path,
    *,
    architecture: str = "llama",
    seed: int = 1,
    num_embd: int = NUM_EMBD,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    change: Keys | None = None,
    without: frozenset[str] = frozenset(),
) -> Path:
    """Write a model.

    Args:
        path: the file to write.
        architecture: what it says it is; its keys are named after it.
        seed: of the weights.
        num_embd: its width.
        kind: ggml type of the matrices.
        change: keys (without the architecture's name) to add or to replace.
        without: keys and tensors to leave out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (_keys(num_embd) | (change or {})).items():
        if key not in without:
            name = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
            _add_key(writer, name, value)
    _add_vocabulary(writer, without)
    for name, values in _weights(seed, num_embd).items():
        if name not in without:
            _add_tensor(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_heads(path: Path, base: Path, count: int = 3, **change: Any) -> Path:
    """Heads that know which token follows which; ``change`` replaces fields of ``Sidecar``."""
    info = inspect(base)
    tensors: dict[str, Matrix] = {}
    output, follows = _weights(1, info.num_embd)["output.weight"], _follows()
    for head in range(count):
        output = output[np.argsort(follows)]
        tensors[f"head.{head}.block.0.weight"] = np.zeros((NUM_EMBD, NUM_EMBD), np.float32)
        tensors[f"head.{head}.block.0.bias"] = np.zeros(NUM_EMBD, np.float32)
        tensors[f"head.{head}.output.weight"] = output
    fields: Keys = {
        "variant": "medusa",
        "num_heads": count,
        "output": "own",
        "tensors": tensors,
    }
    write_sidecar(path, Sidecar(**(fields | change)), info, {})
    return path


def engine_settings(folder: Path, context: int = 1024, **settings: Any) -> EngineSettings:
    """For a service on a tiny model with heads, written into ``folder``, that starts at once."""
    model, heads = folder / "tiny.gguf", folder / "tiny.medusa.gguf"
    if not heads.exists():
        write_heads(heads, write_model(model, change={"context_length": context}))
    fields: Keys = {"model": model, "heads": heads, "num_cells": context, "threads": 1}
    fields |= {"measure_seconds": 0.2, "profile_folder": folder}
    return EngineSettings(**(fields | settings))


def make_backend(folder: Path, **settings: Any) -> LlamaBackend:
    """A backend on a tiny model with heads, written into ``folder``; the caller closes it."""
    model, heads = folder / "tiny.gguf", folder / "tiny.medusa.gguf"
    if not heads.exists():
        write_heads(heads, write_model(model))
    fields: Keys = {"model": model, "heads": heads, "num_cells": 256, "threads": 1} | settings
    return LlamaBackend(EngineSettings(**fields))


def _keys(num_embd: int) -> Keys:
    return {
        "context_length": CONTEXT,
        "embedding_length": num_embd,
        "block_count": NUM_LAYERS,
        "feed_forward_length": NUM_FF,
        "attention.head_count": NUM_HEADS,
        "attention.head_count_kv": NUM_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }


def _add_key(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, list):
        writer.add_array(name, value)
    else:
        writer.add_uint32(name, value)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: Matrix, kind: gguf.GGMLQuantizationType
) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_vocabulary(writer: gguf.GGUFWriter, without: frozenset[str]) -> None:
    if "vocabulary" in without:
        return
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(WORDS)]
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", [float(-i) for i in range(len(tokens))])
    writer.add_array("tokenizer.ggml.token_type", kinds)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 1)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)


def _follows() -> npt.NDArray[np.int64]:
    """The token that mostly comes after each token."""
    return np.random.default_rng(0).permutation(NUM_VOCAB)


def _weights(seed: int, num_embd: int) -> dict[str, Matrix]:
    random = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> Matrix:
        values = random.normal(0.0, scale / np.sqrt(inputs), (outputs, inputs))
        return values.astype(np.float32)

    ones = np.ones(num_embd, np.float32)
    embeddings: Matrix = matrix(NUM_VOCAB, num_embd, 8.0)
    weights = {"token_embd.weight": embeddings}
    for layer in range(NUM_LAYERS):
        block = {
            "attn_norm.weight": ones,
            "attn_q.weight": matrix(num_embd, num_embd, 2.0),
            "attn_k.weight": matrix(num_embd, num_embd, 2.0),
            "attn_v.weight": matrix(num_embd, num_embd),
            "attn_output.weight": matrix(num_embd, num_embd),
            "ffn_norm.weight": ones,
            "ffn_gate.weight": matrix(NUM_FF, num_embd),
            "ffn_up.weight": matrix(NUM_FF, num_embd),
            "ffn_down.weight": matrix(num_embd, NUM_FF),
        }
        weights |= {f"blk.{layer}.{name}": values for name, values in block.items()}
    weights["output_norm.weight"] = random.normal(1.0, 0.05, num_embd).astype(np.float32)
    weights["output.weight"] = embeddings[np.argsort(_follows())] / np.float32(5)
    return weights
