"""Checkpoints as PyTorch and safetensors write them, made without PyTorch."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, Floats]

_STORAGES = {"BF16": "BFloat16Storage", "F16": "HalfStorage", "F32": "FloatStorage"}


def to_bytes(values: npt.NDArray[np.generic], dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x8000) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, {"F16": "<f2", "F32": "<f4", "I64": "<i8"}[dtype]).tobytes()


def as_bf16(values: Floats) -> Floats:
    """What is left of ``values`` after a file of bf16."""
    bits = np.frombuffer(to_bytes(values, "BF16"), np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(values.shape)


def plain(value: object) -> bytes:
    """The opcodes that push ``value``."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_opcodes(key: str, shape: tuple[int, ...], storage: str, count: int) -> bytes:
    """The opcodes that push a tensor as ``torch.save`` writes it."""
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    persistent = (
        b"(" + plain("storage") + b"ctorch\n" + storage.encode() + b"\n"
        + plain(key) + plain("cpu") + plain(count) + b"tQ"
    )  # fmt: skip
    hooks = b"ccollections\nOrderedDict\n)R"
    values = plain(0) + plain(shape) + plain(strides) + plain(False)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + values + hooks + b"tR"


def torch_pickle(tensors: Tensors, dtype: str) -> bytes:
    body = b"\x80\x02ccollections\nOrderedDict\n)R("
    for i, (name, values) in enumerate(tensors.items()):
        storage = _STORAGES[dtype]
        body += plain(name) + tensor_opcodes(str(i), values.shape, storage, values.size)
    return body + b"u."


def write_torch(
    path: Path, tensors: Tensors, dtype: str = "BF16", data: bytes | None = None
) -> Path:
    """A file of ``torch.save``; ``data`` replaces its pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data or torch_pickle(tensors, dtype))
        archive.writestr("archive/byteorder", "little")
        for i, values in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{i}", to_bytes(values, dtype))
        archive.writestr("archive/version", "3\n")
    return path


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[np.generic]], dtype: str = "BF16"
) -> Path:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, values in tensors.items():
        kind = "I64" if values.dtype.kind == "i" else dtype
        blobs.append(to_bytes(values, kind))
        end = offset + len(blobs[-1])
        table[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))
    return path
