"""What a heads file (``*.medusa.gguf``) says, checked before anything of it is used.

Knows keys, shapes and types; docs/heads.md describes them one by one. The graphs are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from gorgon.backend import Floats, Ints
from gorgon.errors import HeadsError, ModelError
from gorgon.llama import ggml
from gorgon.llama.gguf import GgufFile, TensorInfo
from gorgon.llama.model import ModelInfo

FORMAT_VERSION = 1
MAX_HEADS = 16
MAX_BLOCKS = 16
MAX_WINDOW = 8

Variant = Literal["medusa", "conditioned"]
Output = Literal["own", "shared"]


@dataclass(frozen=True, slots=True)
class Knots:
    """A rising, piecewise linear map from raw probability to survival; knots (x, y) in [0, 1]."""

    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True)
class HeadsInfo:
    """The keys of a heads file.

    ``num_heads`` is the number of depths for conditioned heads. ``num_hidden``, ``window`` and
    ``window_length`` are theirs alone, ``num_blocks`` (residual blocks a head) is for Medusa heads.
    ``calibration`` has one entry a depth, or none at all.
    """

    path: Path
    variant: Variant
    num_heads: int
    num_blocks: int
    num_embd: int
    output: Output
    num_outputs: int
    num_hidden: int = 0
    window: int = 0
    window_length: int = 0
    calibration: tuple[Knots, ...] = ()


def open_heads(path: Path) -> GgufFile:
    """The opened file.

    Raises:
        HeadsError: when it is missing, not GGUF, damaged or truncated.
    """
    try:
        return GgufFile(path)
    except ModelError as error:
        raise HeadsError(str(error)) from error


def are_made_for(path: Path, base: ModelInfo) -> bool:
    """Whether the heads in ``path`` name ``base`` as their model.

    Raises:
        HeadsError: when the file is missing or damaged.
    """
    with open_heads(path) as file:
        return file.string("medusa.base.fingerprint") == base.fingerprint


def read_info(file: GgufFile, base: ModelInfo) -> HeadsInfo:
    """The keys of ``file``, checked against the base model and the tensors.

    Raises:
        HeadsError: naming the key or tensor that is wrong.
    """
    if file.string("general.architecture") != "medusa":
        raise HeadsError(
            f"{file.path}: no heads file (general.architecture is not 'medusa'); "
            "make one with gorgon compile heads"
        )
    version = file.uint("medusa.format_version")
    if version != FORMAT_VERSION:
        raise HeadsError(f"{file.path}: heads format {version}, this Gorgon reads {FORMAT_VERSION}")
    _check_base(file, base)
    info = _read_keys(file, base)
    _check_tensors(file, info)
    return info


def read_token_map(file: GgufFile, num_vocab: int) -> Ints | None:
    """The token of each row of the output matrix, shape [num_outputs]; None for all tokens.

    Raises:
        HeadsError: when it names a token twice or one that there is not.
    """
    tensor = file.tensors.get("token_map")
    if tensor is None:
        return None
    if tensor.type != ggml.TYPE_I32 or len(tensor.shape) != 1:
        raise HeadsError(f"{file.path}: token_map must be a list of i32")
    ids = file.read("token_map").view(np.int32).copy()
    if ids.min() < 0 or ids.max() >= num_vocab:
        raise HeadsError(f"{file.path}: token_map names tokens outside 0..{num_vocab - 1}")
    if len(np.unique(ids)) < len(ids):
        raise HeadsError(f"{file.path}: token_map names a token twice")
    return ids


def _check_base(file: GgufFile, base: ModelInfo) -> None:
    for key, expected in (
        ("medusa.embedding_length", base.num_embd),
        ("medusa.vocab_size", base.num_vocab),
    ):
        if file.uint(key) != expected:
            raise HeadsError(
                f"{file.path}: made for another model ({key} {file.uint(key)}, "
                f"{base.path.name} has {expected})"
            )
    if file.string("medusa.base.fingerprint") != base.fingerprint:
        raise HeadsError(
            f"{file.path}: made for another model of the same size than {base.path.name} "
            "(medusa.base.fingerprint); train heads for this one"
        )


def _read_keys(file: GgufFile, base: ModelInfo) -> HeadsInfo:
    variant, output = file.string("medusa.variant"), file.string("medusa.output")
    if variant not in get_args(Variant):
        raise HeadsError(f"{file.path}: medusa.variant '{variant}' is not known to this Gorgon")
    if output not in get_args(Output):
        raise HeadsError(f"{file.path}: medusa.output '{output}', must be 'own' or 'shared'")
    conditioned = variant == "conditioned"
    num_heads = _number(file, "head_count", 1, MAX_HEADS)
    window = _number(file, "window", 0, MAX_WINDOW) if conditioned else 0
    token_map = file.tensors.get("token_map")
    return HeadsInfo(
        path=file.path,
        variant="conditioned" if conditioned else "medusa",
        num_heads=num_heads,
        num_blocks=_number(file, "block_count", 1, 1 if conditioned else MAX_BLOCKS),
        num_embd=base.num_embd,
        output="own" if output == "own" else "shared",
        num_outputs=token_map.shape[0] if token_map else base.num_vocab,
        num_hidden=_number(file, "hidden_length", 1, 1 << 20) if conditioned else 0,
        window=window,
        window_length=_number(file, "window_length", 1, 1 << 20) if window else 0,
        calibration=_read_calibration(file, num_heads),
    )


def _number(file: GgufFile, key: str, lowest: int, highest: int) -> int:
    value = file.uint(f"medusa.{key}")
    if value is None or not lowest <= value <= highest:
        raise HeadsError(f"{file.path}: medusa.{key} is {value}, must be {lowest} to {highest}")
    return value


def _read_calibration(file: GgufFile, num_heads: int) -> tuple[Knots, ...]:
    found = []
    for head in range(num_heads):
        key = f"medusa.calibration.{head}"
        x, y = file.floats(f"{key}.x"), file.floats(f"{key}.y")
        if x is None and y is None:
            continue
        if x is None or y is None or not _is_map(x, y):
            raise HeadsError(f"{file.path}: {key}.x and .y are no rising map over 0 to 1")
        found.append(Knots(x, y))
    if found and len(found) < num_heads:
        raise HeadsError(f"{file.path}: medusa.calibration for {len(found)} of {num_heads} heads")
    return tuple(found)


def _is_map(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> bool:
    if not len(x) == len(y) > 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    within = bool(((x >= 0) & (x <= 1)).all() and ((y >= 0) & (y <= 1)).all())
    return within and bool((np.diff(x) >= 0).all() and (np.diff(y) >= 0).all())


def _check_tensors(file: GgufFile, info: HeadsInfo) -> None:
    for name, shape in _expected(file, info):
        found = file.tensors.get(name)
        if found is None:
            raise HeadsError(f"{file.path}: tensor {name} is missing; make the file again")
        if found.shape != shape:
            raise HeadsError(
                f"{file.path}: tensor {name} has shape {found.shape}, expected {shape}; "
                "make the file again"
            )
        if not _is_usable(found):
            raise HeadsError(f"{file.path}: tensor {name} has type {found.type_name}: no weights")


def _is_usable(tensor: TensorInfo) -> bool:
    """Biases are added as F32, matrices multiplied in any type that ggml turns into floats."""
    if len(tensor.shape) == 1:
        return tensor.type == ggml.TYPE_F32
    return tensor.type == ggml.TYPE_F32 or bool(ggml.get_type_traits(tensor.type)[0].to_float)


def _expected(file: GgufFile, info: HeadsInfo) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors that must be there, contiguous dimension first."""
    matrix = (info.num_embd, info.num_outputs)
    if info.variant == "conditioned":
        yield from _expected_conditioned(info)
        if info.output == "own":
            yield "output.weight", matrix
        return
    for head in range(info.num_heads):
        for block in range(info.num_blocks):
            name = f"head.{head}.block.{block}"
            yield f"{name}.weight", (info.num_embd, info.num_embd)
            if "head.0.block.0.bias" in file.tensors:  # all have one, or none
                yield f"{name}.bias", (info.num_embd,)
        if info.output == "own" and "output.weight" not in file.tensors:
            yield f"head.{head}.output.weight", matrix
    if info.output == "own" and "output.weight" in file.tensors:
        yield "output.weight", matrix


def _expected_conditioned(info: HeadsInfo) -> Iterator[tuple[str, tuple[int, ...]]]:
    embd, hidden, length = info.num_embd, info.num_hidden, info.window_length
    if info.window:
        yield "window.in.weight", (2 * info.window * embd, length)
        yield "window.state.weight", (length, embd)
        yield "window.gate.weight", (length, hidden)
    yield "block.gate.weight", (2 * embd, hidden)
    yield "block.up.weight", (2 * embd, hidden)
    yield "block.down.weight", (hidden, embd)
