"""Tiny models and heads files with random weights, and what the heads should compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

from gorgon.compile.sidecar import Sidecar, write
from gorgon.llama.model import ModelInfo, inspect
from gorgon.llama.tensor_types import TYPES

Floats = npt.NDArray[np.float32]
Tensors = dict[str, Floats]

EMBD, HIDDEN, LENGTH, VOCAB = 256, 512, 256, 640


def write_base(
    path: Path, *, num_embd: int = EMBD, num_vocab: int = VOCAB, kind: str = "F32", seed: int = 0
) -> ModelInfo:
    """A GGUF with a vocabulary, embeddings and a final norm, but no layers."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for name, value in (("embedding_length", num_embd), ("context_length", 64)):
        writer.add_uint32(f"llama.{name}", value)
    table = rng.normal(size=(num_vocab, num_embd)).astype(np.float32)
    raw_type = gguf.GGMLQuantizationType(TYPES[kind])
    writer.add_tensor(
        "token_embd.weight", gguf.quants.quantize(table, raw_type), raw_dtype=raw_type
    )
    writer.add_tensor("output_norm.weight", rng.normal(size=num_embd).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return inspect(path)


def embeddings_of(base: ModelInfo) -> Floats:
    """The embedding table as floats."""
    reader = gguf.GGUFReader(base.path)
    (tensor,) = (t for t in reader.tensors if t.name == "token_embd.weight")
    return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)


def matrix(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Floats:
    return np.asarray(rng.normal(size=(rows, columns)) * scale / np.sqrt(columns), np.float32)


def conditioned_tensors(
    window: int = 2,
    num_embd: int = EMBD,
    num_outputs: int = 300,
    *,
    hidden: int = HIDDEN,
    length: int = LENGTH,
) -> Tensors:
    rng = np.random.default_rng(1)
    tensors = {
        "block.gate.weight": matrix(rng, hidden, 2 * num_embd),
        "block.up.weight": matrix(rng, hidden, 2 * num_embd),
        "block.down.weight": matrix(rng, num_embd, hidden),
        "output.weight": matrix(rng, num_outputs, num_embd, 3.0),
    }
    if window:
        tensors["window.in.weight"] = matrix(rng, length, 2 * window * num_embd)
        tensors["window.state.weight"] = matrix(rng, num_embd, length)
        tensors["window.gate.weight"] = matrix(rng, hidden, length)
    return tensors


def medusa_tensors(
    num_heads: int,
    num_blocks: int = 1,
    num_embd: int = EMBD,
    num_outputs: int = 300,
    *,
    output: Literal["each", "one", "shared"] = "one",
    bias: bool = True,
) -> Tensors:
    rng = np.random.default_rng(2)
    tensors = {}
    for head in range(num_heads):
        for block in range(num_blocks):
            name = f"head.{head}.block.{block}"
            tensors[f"{name}.weight"] = matrix(rng, num_embd, num_embd)
            if bias:
                tensors[f"{name}.bias"] = rng.normal(size=num_embd).astype(np.float32)
        if output == "each":
            tensors[f"head.{head}.output.weight"] = matrix(rng, num_outputs, num_embd, 3.0)
    if output == "one":
        tensors["output.weight"] = matrix(rng, num_outputs, num_embd, 3.0)
    return tensors


def write_heads(
    path: Path, base: ModelInfo, tensors: Tensors, kind: str = "F32", **changes: Any
) -> Path:
    """A heads file of ``tensors``, its keys from their shapes."""
    conditioned = "block.up.weight" in tensors
    values: dict[str, Any] = {"output": "own", "num_heads": 3, "variant": "medusa"}
    if conditioned:
        values["variant"] = "conditioned"
        values["numbers"] = _numbers(tensors, base.num_embd)
    else:
        values["num_heads"] = 1 + max(_part(n, 1) for n in tensors if n.startswith("head."))
        values["num_blocks"] = 1 + max(_part(n, 3) for n in tensors if ".block." in n)
    write(path, Sidecar(tensors=tensors, **(values | changes)), base, {}, TYPES[kind])
    return path


def _numbers(tensors: Mapping[str, Floats], num_embd: int) -> dict[str, int]:
    numbers = {"hidden_length": len(tensors["block.up.weight"]), "window": 0}
    if "window.in.weight" in tensors:
        length, columns = tensors["window.in.weight"].shape
        numbers |= {"window": columns // (2 * num_embd), "window_length": length}
    return numbers


def _part(name: str, index: int) -> int:
    return int(name.split(".")[index])


# -- references, in the words of docs/heads.md ----------------------------------------------------


def silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)), np.float32)


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def normed(v: Floats) -> Floats:
    return np.asarray(v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-6))


def medusa_reference(tensors: Tensors, head: int, h: Floats, output: Floats) -> Floats:
    """Probabilities of one head after states ``h`` [rows, num_embd]."""
    z, block = h.copy(), 0
    while f"head.{head}.block.{block}.weight" in tensors:
        name = f"head.{head}.block.{block}"
        bias = tensors.get(f"{name}.bias", np.zeros(1, np.float32))
        z += silu(z @ tensors[f"{name}.weight"].T + bias)
        block += 1
    return softmax(z @ output.T)


def window_reference(t: Tensors, h: Floats, e: Floats) -> tuple[Floats, Floats]:
    """s[0] and b from ``h`` [rows, 1 + window, num_embd] and embeddings ``e`` of the tokens."""
    if h.shape[1] == 1:
        return h[:, 0], np.zeros((len(h), 1), np.float32)
    pairs = [x for i in range(1, h.shape[1]) for x in (normed(h[:, i]), normed(e[:, i]))]
    c = silu(np.concatenate(pairs, -1) @ t["window.in.weight"].T)
    return h[:, 0] + c @ t["window.state.weight"].T, c @ t["window.gate.weight"].T


def block_reference(t: Tensors, s: Floats, e: Floats, b: Floats) -> tuple[Floats, Floats]:
    """s[k+1] and probabilities from s[k], the embedding of the token above, and b."""
    u = np.concatenate([normed(s), normed(e)], -1)
    gated = silu(u @ t["block.gate.weight"].T + b) * (u @ t["block.up.weight"].T)
    deeper = np.asarray(s + gated @ t["block.down.weight"].T, np.float32)
    return deeper, softmax(deeper @ t["output.weight"].T)
