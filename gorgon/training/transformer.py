"""A Llama model in PyTorch, from a GGUF: whole texts, or one token per slot over a cache.

For making training data on CUDA at hundreds of thousands of tokens a second; serving never uses
it. Weights are dequantised, so states differ from llama.cpp's by its rounding of activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gorgon.errors import ModelError
from gorgon.training.attention import attend

_LAYER_TENSORS = (
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys of a Llama GGUF that its computation depends on."""

    num_layers: int
    num_embd: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    norm_epsilon: float
    rope_base: float


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one block, [outputs, inputs]; products that share an input are joined."""

    attention_norm: Tensor
    query_key_value: Tensor
    output: Tensor
    feed_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Cache:
    """Keys and values of ``num_slots`` texts of at most ``num_cells`` tokens each."""

    def __init__(self, shape: Shape, num_slots: int, num_cells: int, like: Tensor) -> None:
        sizes = (shape.num_layers, num_slots, shape.num_kv_heads, num_cells, shape.head_width)
        self.keys = like.new_zeros(sizes)
        self.values = like.new_zeros(sizes)
        self.slots = torch.arange(num_slots, device=like.device)


class Transformer:
    """The model on ``device``; body in ``dtype``, output product in float32.

    Raises:
        ModelError: when the file is no plain Llama (biases, experts, scaled positions).
    """

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        reader = gguf.GGUFReader(path)
        self.shape = _read_shape(path, reader.fields)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        _refuse_others(path, tensors, self.shape)

        def load(name: str) -> Tensor:
            tensor = tensors[name]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            return torch.from_numpy(np.array(values, np.float32)).to(device)

        embedding = load("token_embd.weight")
        own = "output.weight" in tensors
        self.output = load("output.weight") if own else embedding
        self.embedding = embedding.to(dtype)
        self.output_norm = load("output_norm.weight")
        self.layers = [_load_layer(load, i, dtype) for i in range(self.shape.num_layers)]
        self._frequencies = _frequencies(self.shape).to(device)
        if "rope_freqs.weight" in tensors:
            self._frequencies = self._frequencies / load("rope_freqs.weight")

    @property
    def num_vocab(self) -> int:
        """Token ids are 0 to ``num_vocab - 1``."""
        return len(self.embedding)

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """States after the final norm, float32 [texts, length, num_embd]; padding goes right.

        Args:
            tokens: [texts, length].
        """
        turns = self._turns(torch.arange(tokens.shape[1], device=tokens.device))[:, None]
        rows = self.embedding[tokens]
        group = self.shape.num_heads // self.shape.num_kv_heads
        for layer in self.layers:
            query, key, value = self._project(layer, rows, turns)
            mixed = functional.scaled_dot_product_attention(
                query.transpose(1, 2),
                key.repeat_interleave(group, -2).transpose(1, 2),
                value.repeat_interleave(group, -2).transpose(1, 2),
                is_causal=True,
            )
            rows = self._finish(layer, rows, mixed.transpose(1, 2).flatten(2))
        return self._norm(rows.float(), self.output_norm)

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """States of one more token in each slot, float32 [slots, num_embd].

        Args:
            tokens: [slots].
            positions: where each token stands; cells before it must be filled, [slots].
            cache: gains the tokens' keys and values.
        """
        turns = self._turns(positions)[:, None]
        lengths = (positions + 1).to(torch.int32)
        rows = self.embedding[tokens]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            query, key, value = self._project(layer, rows, turns)
            keys[cache.slots, :, positions] = key
            values[cache.slots, :, positions] = value
            mixed = attend(query, keys, values, lengths)
            rows = self._finish(layer, rows, mixed.flatten(1))
        return self._norm(rows.float(), self.output_norm)

    def logits(self, states: Tensor) -> Tensor:
        """The model's logits for float32 states [..., num_embd]: [..., num_vocab]."""
        return states @ self.output.T

    def _project(self, layer: Layer, rows: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, [..., heads, head_width] each."""
        shape = self.shape
        joined = self._norm(rows, layer.attention_norm) @ layer.query_key_value.T
        joined = joined.unflatten(-1, (-1, shape.head_width))
        num_turned = shape.num_heads + shape.num_kv_heads
        turned = _turn(joined[..., :num_turned, :], turns)
        query, key = turned.split([shape.num_heads, shape.num_kv_heads], dim=-2)
        return query, key, joined[..., num_turned:, :]

    def _finish(self, layer: Layer, rows: Tensor, mixed: Tensor) -> Tensor:
        rows = rows + mixed @ layer.output.T
        gate, up = (self._norm(rows, layer.feed_norm) @ layer.gate_up.T).chunk(2, -1)
        return rows + (functional.silu(gate) * up) @ layer.down.T

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(rows, rows.shape[-1:], weight, self.shape.norm_epsilon)

    def _turns(self, positions: Tensor) -> Tensor:
        """Rotations as complex numbers, [..., head_width / 2]."""
        angles = positions[..., None].float() * self._frequencies
        return torch.polar(torch.ones_like(angles), angles)


def _turn(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs, as GGUF stores Llama's queries and keys."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


def _frequencies(shape: Shape) -> Tensor:
    steps = torch.arange(0, shape.head_width, 2, dtype=torch.float64) / shape.head_width
    return (shape.rope_base**-steps).float()


def _load_layer(load: Any, index: int, dtype: torch.dtype) -> Layer:
    def weight(*names: str) -> Tensor:
        return torch.cat([load(f"blk.{index}.{name}.weight") for name in names]).to(dtype)

    return Layer(
        attention_norm=weight("attn_norm"),
        query_key_value=weight("attn_q", "attn_k", "attn_v"),
        output=weight("attn_output"),
        feed_norm=weight("ffn_norm"),
        gate_up=weight("ffn_gate", "ffn_up"),
        down=weight("ffn_down"),
    )


def _read_shape(path: Path, fields: Mapping[str, Any]) -> Shape:
    def number(key: str, default: float | None = None) -> float:
        field = fields.get(f"llama.{key}")
        if field is None and default is None:
            raise ModelError(f"{path}: no key llama.{key}; convert the model again")
        value: Any = default if field is None else field.contents()
        return float(value)

    if "llama.rope.scaling.type" in fields:
        kind = fields["llama.rope.scaling.type"].contents()
        if kind != "none":
            raise ModelError(f"{path}: position scaling '{kind}' needs --source llama.cpp")
    num_heads = int(number("attention.head_count"))
    num_embd = int(number("embedding_length"))
    return Shape(
        num_layers=int(number("block_count")),
        num_embd=num_embd,
        num_heads=num_heads,
        num_kv_heads=int(number("attention.head_count_kv", num_heads)),
        head_width=int(number("attention.key_length", num_embd // num_heads)),
        norm_epsilon=number("attention.layer_norm_rms_epsilon"),
        rope_base=number("rope.freq_base", 10000.0),
    )


def _refuse_others(path: Path, tensors: Mapping[str, Any], shape: Shape) -> None:
    known = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}
    known |= {f"blk.{i}.{name}.weight" for i in range(shape.num_layers) for name in _LAYER_TENSORS}
    optional = {"output.weight", "rope_freqs.weight"}
    for name in sorted(set(tensors) ^ known):
        if name in tensors:
            raise ModelError(f"{path}: tensor {name} needs --source llama.cpp")
        if name not in optional:
            raise ModelError(f"{path}: no tensor {name}; convert the model again")
