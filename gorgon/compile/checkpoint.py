"""A Hugging Face checkpoint folder, looked over before anything long begins.

Reads headers only: config.json, the shard index, the tables of safetensors files. Weights are the
converter's business.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gorgon.errors import CompileError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1}
_ITEM_BYTES |= {"I16": 2, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}

HalfType = Literal["F16", "BF16"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds: its weight files, the 16-bit type nearest to them, parameters."""

    folder: Path
    weights: tuple[Path, ...]
    half_type: HalfType
    num_parameters: int

    @property
    def half_size(self) -> int:
        """Bytes of all weights at two bytes each."""
        return 2 * self.num_parameters


def inspect(folder: Path) -> Checkpoint:
    """Check that ``folder`` is complete and of a kind that Gorgon serves.

    Raises:
        CompileError: naming the file that is missing, damaged or of the wrong kind.
    """
    config = _read_json(folder / "config.json")
    _check_config(folder, config)
    weights = _weights(folder)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise CompileError(f"{folder}: no tokenizer ({' or '.join(_TOKENIZERS)})")
    if weights[0].suffix == ".safetensors":
        tables = [_read_table(path) for path in weights]
        parameters = sum(_num_elements(table) for table in tables)
        types = {entry["dtype"] for table in tables for entry in table.values()}
    else:
        for path in weights:
            _check_torch(path)
        stated = str(config.get("torch_dtype") or config.get("dtype") or "float16")
        types = {"BF16" if stated.endswith("bfloat16") else "F16"}
        item = 4 if stated.endswith("float32") else 2
        parameters = sum(path.stat().st_size for path in weights) // item
    return Checkpoint(folder, weights, "BF16" if "BF16" in types else "F16", parameters)


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in ARCHITECTURES:
        raise CompileError(
            f"{folder}/config.json: architecture '{name}' is not supported;"
            f" Gorgon serves {' and '.join(ARCHITECTURES)}"
        )
    window, length = config.get("sliding_window"), config.get("max_position_embeddings", 0)
    if isinstance(window, int) and window < length:
        raise CompileError(f"{folder}/config.json: sliding-window attention is not supported")


def _weights(folder: Path) -> tuple[Path, ...]:
    """The weight files, in order.

    Raises:
        CompileError: when there are none or a shard of the index is missing.
    """
    for index in _INDEXES:
        if (folder / index).is_file():
            return _shards(folder, index)
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return _check_numbering(folder, files)
    raise CompileError(f"{folder}: no weights (model*.safetensors or pytorch_model*.bin)")


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    weight_map = _read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CompileError(f"{folder / index}: no weight_map; download the file again")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise CompileError(f"{folder / index}: names files outside the folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CompileError(
            f"{folder}: {len(missing)} of {len(names)} shards missing: {', '.join(missing[:3])};"
            " download them again"
        )
    return tuple(folder / name for name in names)


def _check_numbering(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """Without an index, names such as model-00001-of-00003 still say how many there are."""
    stated = files[0].stem.rpartition("-of-")[2]
    if stated.isdigit() and int(stated) != len(files):
        raise CompileError(f"{folder}: {len(files)} of {int(stated)} shards; download the others")
    return tuple(files)


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The tensor table of a safetensors file, checked against the file's size.

    Raises:
        CompileError: when the file is damaged or truncated.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError("header longer than the file")
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        spans = sorted(tuple(entry["data_offsets"]) for entry in table.values())
        _check_spans(spans, size - 8 - length)
        for entry in table.values():
            start, end = entry["data_offsets"]
            if end - start != _num_items(entry) * _ITEM_BYTES[entry["dtype"]]:
                raise ValueError("a tensor of the wrong size")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else "unreadable table"
        raise CompileError(
            f"{path}: corrupt safetensors file ({reason}); download it again"
        ) from error
    return dict(table)


def _check_torch(path: Path) -> None:
    """A file of torch.save is a zip, whose table is at its end; before PyTorch 1.6 a pickle.

    Raises:
        CompileError: when it is neither, or a zip that ends too early.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if not (zipfile.is_zipfile(path) or start.startswith(b"\x80")):
        raise CompileError(f"{path}: corrupt PyTorch file; download it again")


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
    at = 0
    for start, end in spans:
        if start != at or end < start:
            raise ValueError("tensors overlap or leave gaps")
        at = end
    if at != size:
        raise ValueError(f"{size:,} bytes of weights, the table names {at:,}")


def _num_items(entry: dict[str, Any]) -> int:
    return math.prod(entry["shape"])


def _num_elements(table: dict[str, dict[str, Any]]) -> int:
    return sum(_num_items(entry) for entry in table.values())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompileError(
            f"{path.parent}: not a model folder: {path.name}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise CompileError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CompileError(f"{path}: not a JSON object; download it again")
    return value
