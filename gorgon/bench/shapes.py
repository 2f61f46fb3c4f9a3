"""Models and heads of random weights in a real model's shape: what speed needs, and no more.

The files load everywhere (llama.cpp, Gorgon, llama-server); what they write means nothing. A
tensor's bytes are drawn once for each shape and type and used for every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gorgon.errors import BenchError

Bytes = npt.NDArray[np.uint8]

_CONTEXT = 4096
_WINDOW_LENGTH = 512
_SPECIAL = ("<unk>", "<s>", "</s>")
_UNKNOWN, _CONTROL, _BYTE, _NORMAL = 2, 3, 6, 1  # llama.cpp's token types


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-architecture model's sizes."""

    num_embd: int
    num_layers: int
    num_ff: int
    num_heads: int
    num_kv_heads: int
    num_vocab: int

    @property
    def num_kv(self) -> int:
        """Width of keys and values."""
        return self.num_embd // self.num_heads * self.num_kv_heads


SHAPES = {
    "7b": Shape(4096, 32, 11008, 32, 32, 32000),  # Llama-2-7B, Vicuna-7B
    "1b": Shape(2048, 22, 5632, 32, 4, 32000),  # TinyLlama
    "135m": Shape(576, 30, 1536, 9, 3, 49152),  # SmolLM2
    "tiny": Shape(256, 2, 512, 4, 2, 1024),  # for tests
}
KINDS = ("F16", "Q8_0", "Q4_0", "Q4_K_M")


class _Drawer:
    """Random tensors with the scale of trained ones, in any of the types."""

    def __init__(self) -> None:
        self._gguf = load_gguf()
        self._rng = np.random.default_rng(0)
        self._drawn: dict[tuple[int, int, str], npt.NDArray[Any]] = {}

    def draw(self, rows: int, columns: int, kind: str) -> npt.NDArray[Any]:
        """Quantised blocks, uint8 of shape [rows, bytes], or float16 [rows, columns]."""
        key = (rows, columns, kind)
        if key not in self._drawn:
            make = self._floats if kind == "F16" else self._blocks
            self._drawn[key] = make(rows, columns, kind)
        return self._drawn[key]

    def _floats(self, rows: int, columns: int, _kind: str) -> npt.NDArray[np.float16]:
        values = self._rng.standard_normal((rows, columns), np.float32)
        values *= 0.4 / columns**0.5
        return values.astype(np.float16)

    def _blocks(self, rows: int, columns: int, kind: str) -> Bytes:
        size, num_bytes = self._gguf.GGML_QUANT_SIZES[self.type_of(kind)]
        blocks = self._rng.integers(0, 256, (rows, columns // size, num_bytes), dtype=np.uint8)
        scale = np.array([0.4 / columns**0.5 / 8], np.float16)
        if kind == "Q6_K":
            blocks[..., -2:] = (scale / 64).view(np.uint8)
        elif kind == "Q4_K":
            blocks[..., :2] = blocks[..., 2:4] = (scale / 32).view(np.uint8)
        else:
            blocks[..., :2] = scale.view(np.uint8)
        return blocks.reshape(rows, -1)

    def type_of(self, kind: str) -> Any:
        """gguf's name for a type."""
        return self._gguf.GGMLQuantizationType[kind]


def load_gguf() -> Any:
    """The ``gguf`` package.

    Raises:
        BenchError: when it is not installed.
    """
    try:
        import gguf  # noqa: PLC0415
    except ImportError as error:
        raise BenchError("random models need gguf: pip install 'gorgon[bench]'") from error
    return gguf


def write_model(name: str, kind: str, path: Path) -> Path:
    """Write a model of shape ``name``; complete or not at all.

    Raises:
        BenchError: when there is no such shape or type.
    """
    if name not in SHAPES or kind not in KINDS:
        raise BenchError(
            f"no shape '{name}' of type '{kind}'; shapes: {', '.join(SHAPES)}; "
            f"types: {', '.join(KINDS)}"
        )
    return _write(path, "llama", lambda writer: _fill_model(writer, name, kind))


def _fill_model(writer: Any, name: str, kind: str) -> None:
    shape, drawer = SHAPES[name], _Drawer()
    writer.add_name(f"random {name} {kind}")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.num_embd)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.num_ff)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.num_embd // shape.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer, shape.num_vocab)
    ones = np.ones(shape.num_embd, np.float32)
    for tensor, rows, columns, type_name in _matrices(shape, kind):
        _add(writer, drawer, tensor, rows, columns, type_name)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(shape.num_layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)


def _matrices(shape: Shape, kind: str) -> list[tuple[str, int, int, str]]:
    """(name, rows, columns, type), mixed for Q4_K_M as llama.cpp mixes."""
    embd, ff, layers = shape.num_embd, shape.num_ff, shape.num_layers
    plain: str = "Q4_K" if kind == "Q4_K_M" else kind
    found: list[tuple[str, int, int, str]] = [("token_embd.weight", shape.num_vocab, embd, plain)]
    better: str = "Q6_K" if kind == "Q4_K_M" else kind
    found.append(("output.weight", shape.num_vocab, embd, better))
    for layer in range(layers):
        mixed = better if layer < layers // 8 or layer % 3 == 2 else plain
        found += [
            (f"blk.{layer}.attn_q.weight", embd, embd, plain),
            (f"blk.{layer}.attn_k.weight", shape.num_kv, embd, plain),
            (f"blk.{layer}.attn_v.weight", shape.num_kv, embd, mixed),
            (f"blk.{layer}.attn_output.weight", embd, embd, plain),
            (f"blk.{layer}.ffn_gate.weight", ff, embd, plain),
            (f"blk.{layer}.ffn_up.weight", ff, embd, plain),
            (f"blk.{layer}.ffn_down.weight", embd, ff, mixed),
        ]
    return found


def _add_vocabulary(writer: Any, num_vocab: int) -> None:
    """SentencePiece with every byte and otherwise made-up words: any text becomes bytes."""
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    words = [f"\u2581w{i}" for i in range(num_vocab - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, *words])
    writer.add_token_scores([0.0] * len(pieces) + [-1000.0] * len(words))
    writer.add_token_types([*types, *[_NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


FIRST_WORD = len(_SPECIAL) + 256  # tokens before it are control and bytes


@dataclass(frozen=True, slots=True)
class Base:
    """What a heads file must know of its model."""

    num_embd: int
    num_vocab: int
    fingerprint: str


def write_heads(
    variant: Literal["medusa", "conditioned"],
    base: Base,
    path: Path,
    *,
    num_heads: int = 4,
    num_outputs: int = 8192,
) -> Path:
    """Write random heads of the size of real ones: ``docs/training.md`` describes both variants.

    ``num_outputs`` is how many tokens they know. Types are those that ``gorgon compile heads``
    gives released Medusa heads, and that ``gorgon train`` prepares conditioned ones for.
    """
    kind = "Q8_0" if variant == "medusa" else "Q4_0"
    fill = _fill_medusa if variant == "medusa" else _fill_conditioned
    outputs = min(num_outputs, base.num_vocab)

    def write(writer: Any) -> None:
        writer.add_uint32("medusa.format_version", 1)
        writer.add_string("medusa.variant", variant)
        writer.add_uint32("medusa.head_count", num_heads)
        writer.add_uint32("medusa.block_count", 1)
        writer.add_uint32("medusa.embedding_length", base.num_embd)
        writer.add_uint32("medusa.vocab_size", base.num_vocab)
        writer.add_string("medusa.output", "own")
        writer.add_string("medusa.base.fingerprint", base.fingerprint)
        fill(writer, _Drawer(), base.num_embd, outputs, num_heads, kind)
        writer.add_tensor("token_map", np.arange(outputs, dtype=np.int32))

    return _write(path, "medusa", write)


def _fill_medusa(
    writer: Any, drawer: _Drawer, embd: int, outputs: int, num_heads: int, kind: str
) -> None:
    for head in range(num_heads):
        _add(writer, drawer, f"head.{head}.block.0.weight", embd, embd, kind)
        writer.add_tensor(f"head.{head}.block.0.bias", np.zeros(embd, np.float32))
        _add(writer, drawer, f"head.{head}.output.weight", outputs, embd, kind)


def _fill_conditioned(
    writer: Any, drawer: _Drawer, embd: int, outputs: int, _num_heads: int, kind: str
) -> None:
    writer.add_uint32("medusa.hidden_length", embd)
    writer.add_uint32("medusa.window_length", _WINDOW_LENGTH)
    writer.add_uint32("medusa.window", 2)
    for name, rows, columns in (
        ("window.in", _WINDOW_LENGTH, 4 * embd),
        ("window.state", embd, _WINDOW_LENGTH),
        ("window.gate", embd, _WINDOW_LENGTH),
        ("block.gate", embd, 2 * embd),
        ("block.up", embd, 2 * embd),
        ("block.down", embd, embd),
        ("output", outputs, embd),
    ):
        _add(writer, drawer, f"{name}.weight", rows, columns, kind)


def _add(writer: Any, drawer: _Drawer, name: str, rows: int, columns: int, kind: str) -> None:
    values = drawer.draw(rows, columns, kind)
    writer.add_tensor(name, values, raw_dtype=drawer.type_of(kind))


def _write(path: Path, architecture: str, fill: Callable[[Any], None]) -> Path:
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = load_gguf().GGUFWriter(part, architecture)
    try:
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror or error}; nothing was kept") from error
    finally:
        part.unlink(missing_ok=True)
    return path
