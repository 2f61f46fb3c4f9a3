"""PyTorch's zip files (``*.pt``, ``*.bin``) without PyTorch and without running what they hold.

A file of ``torch.save`` is a zip of ``data.pkl``, a pickle that says how tensors are cut from
storages, and the storages, uncompressed. Unpickling may call anything that the pickle names; here
it may name an ordered dictionary, the function that cuts a tensor, and types of storages.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gorgon.compile.stored import StoredTensor, item_bytes
from gorgon.errors import HeadsError

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
}
_MAX_PICKLE_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: lengths of its name and extra field


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a state dict, by name; other values are left out.

    Raises:
        HeadsError: when the file is damaged, of the format before PyTorch 1.6, or names anything
            but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except HeadsError:
        raise
    except Exception as error:  # a damaged zip file can fail in any way there is
        raise HeadsError(
            f"{path}: no PyTorch zip file, or damaged ({error}); download it again, or save it "
            "anew with torch.save of 1.6 or later or as safetensors"
        ) from error


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise HeadsError(f"{path}: no data.pkl in it: not a file of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
        raise HeadsError(f"{path}: its pickle is too large to be that of a state dict")
    if f"{root}byteorder" in archive.namelist():
        with archive.open(f"{root}byteorder") as file:
            if file.read(7) != b"little":
                raise HeadsError(f"{path}: big-endian; save it anew on a little-endian machine")
    unpickler = _Unpickler(path, archive, root)
    try:
        state = unpickler.load()
    except HeadsError:
        raise
    except Exception as error:  # a pickle can fail in any way there is
        raise HeadsError(f"{path}: damaged pickle ({error}); download the file again") from error
    if not isinstance(state, Mapping):
        raise HeadsError(f"{path}: holds a {type(state).__name__}, not a state dict of tensors")
    return {str(name): value for name, value in state.items() if isinstance(value, StoredTensor)}


@dataclass(frozen=True, slots=True)
class _Storage:
    offset: int
    dtype: str
    num_elements: int


class _Unpickler(pickle.Unpickler):
    """Knows tensors and dictionaries, and refuses the rest by name."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._path, self._archive, self._root = path, archive, root

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _data_of
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise HeadsError(
            f"{self._path}: its pickle names {module}.{name}, which a file of weights does not "
            "need; do not trust it"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: where its bytes lie in the file."""
        match pid:
            case ("storage", str(dtype), str(key), _, int(count)) if dtype in _STORAGES.values():
                return _Storage(self._locate(key, count * item_bytes(dtype)), dtype, count)
        raise HeadsError(f"{self._path}: its pickle refers to something that is no storage")

    def _locate(self, key: str, size: int) -> int:
        name = f"{self._root}data/{key}"
        try:
            entry = self._archive.getinfo(name)
        except KeyError:
            raise HeadsError(f"{self._path}: {name} is missing; download it again") from None
        if entry.compress_type != zipfile.ZIP_STORED or not 0 <= size <= entry.file_size:
            raise HeadsError(f"{self._path}: {name} is compressed or too short; save it anew")
        with self._path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            file.seek(0, io.SEEK_END)
            end = file.tell()
        name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
        if start + size > end:
            raise HeadsError(f"{self._path}: {name} ends too early; download it again")
        return start

    def _rebuild(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, _Storage) or not _are_counts((offset, *shape, *stride)):
            raise HeadsError(f"{self._path}: its pickle cuts a tensor out of something else")
        if not _is_contiguous(shape, stride):
            raise HeadsError(f"{self._path}: a tensor is not contiguous; save it anew")
        if offset + math.prod(shape) > storage.num_elements:
            raise HeadsError(f"{self._path}: a tensor is larger than its storage")
        start = storage.offset + offset * item_bytes(storage.dtype)
        return StoredTensor(self._path, start, storage.dtype, tuple(shape))


def _data_of(data: Any, *_: Any) -> Any:
    """``torch.nn.Parameter``: its tensor."""
    return data


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int) and 0 <= value < 2**48 for value in values)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True
