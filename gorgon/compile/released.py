"""The names under which Medusa heads were released, and what they are called in a heads file.

What is there is counted from the tensors: released configs are known to be wrong about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gorgon.compile.stored import DTYPES, StoredTensor
from gorgon.errors import HeadsError

# FasterDecoding and TGI: {head}.{block}.linear, and {head}.{blocks} for the output matrix.
# vLLM: blocks.{head}.layers.{block}, lm_heads.{head} or one lm_head, token_map.
_LINEAR = re.compile(
    r"(\d+)\.(\d+)\.linear\.(weight|bias)|blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)"
)
_OUTPUT = re.compile(r"(\d+)\.(\d+)\.weight|lm_heads\.(\d+)\.weight")
_PREFIXES = ("medusa_head.", "medusa_heads.")  # within a merged model (Medusa-2); in vLLM


@dataclass(frozen=True, slots=True)
class ReleasedHeads:
    """Heads under the names of a heads file; ``token_ids`` is the token of each output row."""

    tensors: dict[str, StoredTensor]
    num_heads: int
    num_blocks: int
    token_ids: npt.NDArray[np.int32] | None

    @property
    def has_output(self) -> bool:
        """Whether there is an output matrix; without one the base model's serves."""
        return any(name.endswith("output.weight") for name in self.tensors)


def find_heads(source: Path, stored: Mapping[str, StoredTensor]) -> ReleasedHeads:
    """The heads among the tensors of ``source``.

    Raises:
        HeadsError: when there are none, or one of them lacks a tensor.
    """
    stored = _inside(stored)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if match := _LINEAR.fullmatch(name):
            head, block, kind = (part for part in match.groups() if part is not None)
            tensors[f"head.{int(head)}.block.{int(block)}.{kind}"] = tensor
    if not tensors:
        known = "0.0.linear.weight, medusa_head.0.0.linear.weight or blocks.0.layers.0.weight"
        raise HeadsError(f"{source}: no Medusa heads in it (no tensor named {known})")
    heads = _count(source, tensors, 1)
    blocks = _count(source, tensors, 3)
    tensors |= _outputs(source, stored, heads, blocks)
    _check_complete(source, tensors, heads, blocks)
    return ReleasedHeads(tensors, heads, blocks, _token_map(source, stored))


def _inside(stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Without the base model of a merged checkpoint, and without the prefix."""
    for prefix in _PREFIXES:
        inside = {name.partition(prefix)[2]: t for name, t in stored.items() if prefix in name}
        if inside:
            return inside
    return stored


def _count(source: Path, names: Iterable[str], index: int) -> int:
    """How many heads or blocks there are: numbers at ``index`` of the names, from 0."""
    numbers = {int(name.split(".")[index]) for name in names}
    if missing := set(range(max(numbers) + 1)) - numbers:
        what = {1: "head", 3: "block"}[index]
        raise HeadsError(f"{source}: {what} {min(missing)} is missing; download it again")
    return len(numbers)


def _outputs(
    source: Path, stored: Mapping[str, StoredTensor], heads: int, blocks: int
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        match = _OUTPUT.fullmatch(name)
        if match is None:
            continue
        head = int(match[1] or match[3])
        if head >= heads or (match[2] is not None and int(match[2]) != blocks):
            raise HeadsError(f"{source}: {name} belongs to no head of {blocks} blocks")
        found[f"head.{head}.output.weight"] = tensor
    if not found and "lm_head.weight" in stored and any(n.startswith("blocks.") for n in stored):
        return {"output.weight": stored["lm_head.weight"]}
    return found


def _check_complete(
    source: Path, tensors: Mapping[str, StoredTensor], heads: int, blocks: int
) -> None:
    """All heads have the same tensors."""
    kinds = {name.split(".", 2)[2] for name in tensors if name.startswith("head.")}
    for head in range(heads):
        for kind in sorted(kinds):
            if f"head.{head}.{kind}" not in tensors:
                raise HeadsError(
                    f"{source}: head {head} has no {kind}, others have; download it again"
                )
    assert all(f"head.0.block.{block}.weight" in tensors for block in range(blocks))


def _token_map(source: Path, stored: Mapping[str, StoredTensor]) -> npt.NDArray[np.int32] | None:
    tensor = stored.get("token_map")
    if tensor is None:
        return None
    if not tensor.dtype.startswith("I") or len(tensor.shape) != 1:
        raise HeadsError(f"{source}: token_map must be a list of integers")
    return np.asarray(tensor[:]).astype(np.int32)


def check_fit(source: Path, heads: ReleasedHeads, num_embd: int, num_vocab: int) -> None:
    """Assure that every tensor has the shape that the base model asks for.

    Raises:
        HeadsError: naming the tensor and both shapes.
    """
    ids = heads.token_ids
    if ids is not None and (len(ids) == 0 or ids.min() < 0 or ids.max() >= num_vocab):
        raise HeadsError(f"{source}: token_map names tokens outside 0..{num_vocab - 1}")
    num_outputs = num_vocab if ids is None else len(ids)
    for name, tensor in heads.tensors.items():
        rows = num_outputs if name.endswith("output.weight") else num_embd
        expected = (rows,) if name.endswith("bias") else (rows, num_embd)
        if tensor.dtype not in DTYPES or tensor.dtype.startswith("I"):
            raise HeadsError(f"{source}: {name} has type {tensor.dtype}; save it as bf16 or f16")
        if tensor.shape != expected:
            raise HeadsError(
                f"{source}: {name} has shape {list(tensor.shape)}, heads for this base model "
                f"have {list(expected)}; they were made for another model"
            )
