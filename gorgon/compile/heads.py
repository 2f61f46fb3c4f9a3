"""Released Medusa heads to a sidecar file ``*.medusa.gguf``.

Reads the naming of the Medusa code base, ``{head}.{block}.linear.weight|bias`` and, when a head
has its own output matrix, ``{head}.{blocks}.weight``. The number of heads and blocks is counted
from the tensors: released configs are known to be wrong about it.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from gorgon.errors import HeadsError
from gorgon.llama.heads_file import FORMAT_VERSION
from gorgon.llama.model import ModelInfo, inspect

Tensors = dict[str, npt.NDArray[np.float32]]

_LINEAR = re.compile(r"^(\d+)\.(\d+)\.linear\.(weight|bias)$")
_OUTPUT = re.compile(r"^(\d+)\.(\d+)\.weight$")


def compile_heads(
    source: Path, base: Path, target: Path, type_name: str, token_ids: npt.NDArray[np.int32] | None
) -> None:
    """Write ``target`` from the safetensors file ``source``.

    Args:
        source: heads in released naming.
        base: the GGUF that they belong to.
        target: the file to write; it appears only when complete.
        type_name: ggml type of the matrices, ``Q8_0`` for example.
        token_ids: the tokens that the heads may guess, all if None.

    Raises:
        HeadsError: when the source holds no heads or heads of another width.
    """
    info = inspect(base)
    tensors = rename(load_file(source), token_ids)
    width = tensors["head.0.block.0.weight"].shape[0]
    if width != info.num_embd:
        raise HeadsError(f"{source}: heads are {width} wide, {base.name} is {info.num_embd}")
    write(target, tensors, info, gguf.GGMLQuantizationType[type_name], token_ids)


def rename(source: Tensors, token_ids: npt.NDArray[np.int32] | None) -> Tensors:
    """Tensors under the names of the sidecar, output matrices cut to ``token_ids``.

    Raises:
        HeadsError: when nothing has a released name.
    """
    tensors: Tensors = {}
    for name, data in source.items():
        if match := _LINEAR.match(name):
            head, block, kind = match.groups()
            tensors[f"head.{head}.block.{block}.{kind}"] = data
        elif match := _OUTPUT.match(name):
            rows = data if token_ids is None else data[token_ids]
            tensors[f"head.{match[1]}.output.weight"] = rows
    if "head.0.block.0.weight" not in tensors:
        raise HeadsError("no tensor named 0.0.linear.weight: not Medusa heads")
    return tensors


def write(
    target: Path,
    tensors: Tensors,
    base: ModelInfo,
    kind: gguf.GGMLQuantizationType,
    token_ids: npt.NDArray[np.int32] | None,
) -> None:
    """Write a sidecar; half-written files never carry the final name."""
    part = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(part, "medusa")
    _write_keys(writer, tensors, base)
    for name, data in tensors.items():
        values = np.asarray(data, np.float32)
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    if token_ids is not None:
        writer.add_tensor("token_map", np.asarray(token_ids, np.int32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    part.replace(target)


def _write_keys(writer: gguf.GGUFWriter, tensors: Tensors, base: ModelInfo) -> None:
    heads = {int(name.split(".")[1]) for name in tensors}
    blocks = {int(name.split(".")[3]) for name in tensors if ".block." in name}
    own = any(name.endswith(".output.weight") for name in tensors)
    writer.add_name(f"Medusa heads for {base.name}")
    writer.add_uint32("medusa.format_version", FORMAT_VERSION)
    writer.add_string("medusa.variant", "medusa")
    writer.add_uint32("medusa.head_count", len(heads))
    writer.add_uint32("medusa.block_count", len(blocks))
    writer.add_uint32("medusa.embedding_length", base.num_embd)
    writer.add_uint32("medusa.vocab_size", base.num_vocab)
    writer.add_string("medusa.output", "own" if own else "shared")
    writer.add_string("medusa.base.fingerprint", base.fingerprint)
