"""Writing a heads file; docs/heads.md lists its keys and tensors.

Tensors are read, turned and written one by one, so that heads of any size need the memory of
their largest tensor only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import gguf
import numpy as np
import numpy.typing as npt

from gorgon.errors import HeadsError
from gorgon.llama.heads_file import FORMAT_VERSION
from gorgon.llama.model import ModelInfo
from gorgon.llama.tensor_types import TYPES, Rows, encode, fitting, row_bytes


class Calibration(Protocol):
    """A rising, piecewise linear map from raw probability to survival, by its knots."""

    @property
    def x(self) -> npt.NDArray[np.floating]:
        """Raw probabilities."""

    @property
    def y(self) -> npt.NDArray[np.floating]:
        """Survival at each."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What a heads file holds; matrices are floats, shape [outputs, inputs], under final names.

    ``numbers`` are further keys ``medusa.*``, ``provenance`` becomes ``medusa.training.*``.
    """

    variant: Literal["medusa", "conditioned"]
    num_heads: int
    output: Literal["own", "shared"]
    tensors: Mapping[str, Rows]
    token_ids: npt.NDArray[np.int32] | None = None
    calibration: Sequence[Calibration] = ()
    num_blocks: int = 1
    license: str | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)


def write(
    target: Path,
    sidecar: Sidecar,
    base: ModelInfo,
    kinds: Mapping[str, int],
    default: int = TYPES["Q8_0"],
) -> None:
    """Write ``target``; it appears under its name only when complete.

    Args:
        target: the file to write.
        sidecar: its contents.
        base: the model that the heads were made for.
        kinds: ggml type of each matrix by tensor name.
        default: type of the matrices not named. A type whose blocks do not fit the rows gives way
            to the one that llama.cpp falls back to.

    Raises:
        HeadsError: when the file cannot be written; nothing is left behind.
    """
    types = {name: kinds.get(name, default) for name in sidecar.tensors}
    _replace(target, lambda part: _write_part(part, sidecar, base, types))


def write_calibrated(
    target: Path,
    source: Path,
    calibration: Sequence[Calibration],
    provenance: Mapping[str, str | int | float],
) -> None:
    """Write ``target``: the heads file ``source`` with another calibration, all else as it is.

    Args:
        target: the file to write; may be ``source``.
        source: a heads file.
        calibration: one map a depth, or none at all.
        provenance: further ``medusa.training.*``, in place of those of the same name.

    Raises:
        HeadsError: when the file cannot be written; nothing is left behind.
    """
    _replace(target, lambda part: _copy(part, source, calibration, provenance))


def _replace(target: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` write beside ``target``, which gets that content only when it is complete."""
    part = target.with_name(target.name + ".part")
    try:
        make(part)
        part.replace(target)
    except OSError as error:
        raise HeadsError(
            f"{target}: {error.strerror or error}; the heads were not saved"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _copy(
    part: Path,
    source: Path,
    calibration: Sequence[Calibration],
    provenance: Mapping[str, str | int | float],
) -> None:
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(part, "medusa")
    replaced = {"general.architecture", *(f"medusa.training.{name}" for name in provenance)}
    try:
        for name, field_ in reader.fields.items():
            if name in replaced or name.startswith(("GGUF.", "medusa.calibration.")):
                continue
            is_list = field_.types[0] == gguf.GGUFValueType.ARRAY
            kind = field_.types[-1] if is_list else None
            writer.add_key_value(name, field_.contents(), field_.types[0], sub_type=kind)
        _add_calibration(writer, calibration)
        _add_provenance(writer, provenance)
        for tensor in reader.tensors:
            shape, size = tensor.data.shape, tensor.data.nbytes
            kind_of = tensor.data.dtype
            writer.add_tensor_info(tensor.name, shape, kind_of, size, tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(tensor.data)
    finally:
        writer.close()


def _write_part(part: Path, sidecar: Sidecar, base: ModelInfo, kinds: Mapping[str, int]) -> None:
    writer = gguf.GGUFWriter(part, "medusa")
    try:
        _add_keys(writer, sidecar, base)
        for name, values in sidecar.tensors.items():
            _declare(writer, name, values.shape, kinds[name])
        if sidecar.token_ids is not None:
            _declare_map(writer, len(sidecar.token_ids))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, values in sidecar.tensors.items():
            writer.write_tensor_data(_data(values, kinds[name]))
        if sidecar.token_ids is not None:
            writer.write_tensor_data(np.asarray(sidecar.token_ids, np.int32))
    finally:
        writer.close()


def _declare(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: int) -> None:
    """Matrices get the type asked for, vectors stay floats."""
    kind = fitting(kind, shape[-1]) if len(shape) == 2 else TYPES["F32"]
    num_bytes = row_bytes(kind, shape[-1]) * (shape[0] if len(shape) == 2 else 1)
    raw_type = gguf.GGMLQuantizationType(kind)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=raw_type)


def _declare_map(writer: gguf.GGUFWriter, count: int) -> None:
    writer.add_tensor_info("token_map", (count,), np.dtype(np.int32), 4 * count)


def _data(values: Rows, kind: int) -> npt.NDArray[np.generic]:
    if len(values.shape) == 1:
        return np.ascontiguousarray(values[:], np.float32)
    return encode(values, fitting(kind, values.shape[-1]))


def _add_keys(writer: gguf.GGUFWriter, sidecar: Sidecar, base: ModelInfo) -> None:
    writer.add_name(f"Medusa heads for {base.name}")
    if sidecar.license:
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
    _add_calibration(writer, sidecar.calibration)
    _add_provenance(writer, sidecar.provenance)


def _add_calibration(writer: gguf.GGUFWriter, maps: Sequence[Calibration]) -> None:
    for head, calibration in enumerate(maps):
        writer.add_array(f"medusa.calibration.{head}.x", calibration.x.tolist())
        writer.add_array(f"medusa.calibration.{head}.y", calibration.y.tolist())


def _add_provenance(writer: gguf.GGUFWriter, provenance: Mapping[str, str | int | float]) -> None:
    for name, value in provenance.items():
        key = f"medusa.training.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint64(key, value)
        else:
            writer.add_float32(key, value)
