"""All tensors of a checkpoint: one file or a folder of shards, PyTorch or safetensors."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from gorgon.compile.stored import DTYPES, StoredTensor, item_bytes
from gorgon.compile.torch_file import read_torch
from gorgon.errors import HeadsError

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_TORCH_SUFFIXES = (".pt", ".bin", ".pth")


def read_tensors(source: Path) -> dict[str, StoredTensor]:
    """The tensors in ``source`` by name; of folders, all shards together.

    Raises:
        HeadsError: when there is no checkpoint, or a file is damaged or of no known format.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(source):
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise HeadsError(f"{path}: tensor {twice[0]} is in another file of the folder, too")
        tensors |= found
    return tensors


def _files(source: Path) -> list[Path]:
    """The files that hold the weights; safetensors are preferred where a folder has both."""
    if source.is_file():
        if source.suffix not in (".safetensors", *_TORCH_SUFFIXES):
            raise HeadsError(
                f"{source}: not a checkpoint; give a .safetensors, .pt or .bin file, or a folder"
            )
        return [source]
    if not source.is_dir():
        raise HeadsError(f"{source}: no such file or folder")
    for suffixes in ((".safetensors",), _TORCH_SUFFIXES):
        if paths := sorted(p for p in source.iterdir() if p.suffix in suffixes):
            return paths
    raise HeadsError(f"{source}: no .safetensors, .pt or .bin file in it")


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name.

    Raises:
        HeadsError: when the file is damaged or truncated.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        size = path.stat().st_size
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise HeadsError(f"{path}: not a safetensors file, or truncated; download it again")
        try:
            table = json.loads(file.read(length))
            entries = {str(n): v for n, v in table.items() if n != "__metadata__"}
            return {n: _entry(path, v, 8 + length, size) for n, v in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HeadsError(f"{path}: damaged header ({error}); download it again") from error


def _entry(path: Path, entry: Any, start: int, file_size: int) -> StoredTensor:
    dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("shape or offsets are no counts")
    if start + end > file_size:
        raise HeadsError(f"{path}: truncated; download it again")
    # Types that heads do not come in are left to whoever wants the tensor.
    if dtype in DTYPES and math.prod(shape) * item_bytes(dtype) != end - begin:
        raise ValueError(f"{end - begin} bytes for a {dtype} of shape {shape}")
    return StoredTensor(path, start + begin, dtype, shape)
