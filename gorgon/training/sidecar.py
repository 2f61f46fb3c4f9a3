"""Writing a heads file; docs/training.md lists its keys and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt

from gorgon.errors import HeadsError
from gorgon.llama.heads import FORMAT_VERSION
from gorgon.llama.model import ModelInfo
from gorgon.training.calibration import Calibration


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a heads file holds; matrices are float, shape [outputs, inputs], under final names."""

    variant: Literal["medusa", "conditioned"]
    num_heads: int
    output: Literal["own", "shared"]
    tensors: Mapping[str, npt.NDArray[np.float32]]
    token_ids: npt.NDArray[np.int32] | None = None
    calibration: tuple[Calibration, ...] = ()
    num_blocks: int = 1
    license: str = "apache-2.0"
    numbers: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)


def write(
    target: Path,
    sidecar: Sidecar,
    base: ModelInfo,
    kinds: Mapping[str, gguf.GGMLQuantizationType],
) -> None:
    """Write ``target``; it appears under its name only when complete.

    Args:
        target: the file to write.
        sidecar: its contents.
        base: the model that the heads were made for.
        kinds: ggml type of each matrix by tensor name; Q8_0 for those not named.

    Raises:
        HeadsError: when the file cannot be written; nothing is left behind.
    """
    part = target.with_name(target.name + ".part")
    try:
        _write_part(part, sidecar, base, kinds)
        part.replace(target)
    except OSError as error:
        raise HeadsError(
            f"{target}: {error.strerror or error}; the heads were not saved"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _write_part(
    part: Path,
    sidecar: Sidecar,
    base: ModelInfo,
    kinds: Mapping[str, gguf.GGMLQuantizationType],
) -> None:
    writer = gguf.GGUFWriter(part, "medusa")
    try:
        _add_keys(writer, sidecar, base)
        for name, values in sidecar.tensors.items():
            _add_tensor(writer, name, values, kinds.get(name, gguf.GGMLQuantizationType.Q8_0))
        if sidecar.token_ids is not None:
            writer.add_tensor("token_map", np.asarray(sidecar.token_ids, np.int32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    values: npt.NDArray[np.float32],
    kind: gguf.GGMLQuantizationType,
) -> None:
    values = np.ascontiguousarray(values, np.float32)
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_keys(writer: gguf.GGUFWriter, sidecar: Sidecar, base: ModelInfo) -> None:
    writer.add_name(f"Medusa heads for {base.name}")
    writer.add_license(sidecar.license)
    writer.add_uint32("medusa.format_version", FORMAT_VERSION)
    writer.add_string("medusa.variant", sidecar.variant)
    writer.add_uint32("medusa.head_count", sidecar.num_heads)
    writer.add_uint32("medusa.block_count", sidecar.num_blocks)
    writer.add_uint32("medusa.embedding_length", base.num_embd)
    writer.add_uint32("medusa.vocab_size", base.num_vocab)
    writer.add_string("medusa.output", sidecar.output)
    writer.add_string("medusa.base.fingerprint", base.fingerprint)
    for name, number in sidecar.numbers.items():
        writer.add_uint32(f"medusa.{name}", number)
    for head, calibration in enumerate(sidecar.calibration):
        writer.add_array(f"medusa.calibration.{head}.x", calibration.x.tolist())
        writer.add_array(f"medusa.calibration.{head}.y", calibration.y.tolist())
    for name, value in sidecar.provenance.items():
        _add_provenance(writer, f"medusa.training.{name}", value)


def _add_provenance(writer: gguf.GGUFWriter, key: str, value: str | int | float) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint64(key, value)
    else:
        writer.add_float32(key, value)
