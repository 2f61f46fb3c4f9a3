"""From what the user names to an unquantised GGUF in the workspace."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from gorgon.compile import checkpoint, converter, space
from gorgon.compile.progress import stage
from gorgon.compile.workspace import Stage, Workspace, key_of
from gorgon.errors import CompileError
from gorgon.llama.gguf import GgufFile
from gorgon.llama.model import inspect as inspect_gguf
from gorgon.llama.quantize import FILE_TYPES

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: files to hash, and what is known of it."""

    name: str
    kind: str
    files: tuple[Path, ...]
    size: int
    checkpoint: checkpoint.Checkpoint | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Changes when any file of the source does."""
        stats = [(str(path.resolve()), path.stat()) for path in self.files]
        return key_of([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def describe(self) -> dict[str, Any]:
        """For the manifest, with a SHA-256 of every file."""
        files = [
            {"name": path.name, "size": path.stat().st_size, "sha256": sha256(path)}
            for path in self.files
        ]
        return {"name": self.name, "kind": self.kind, "files": files}


def find(name: str, console: Console) -> Source:
    """Look ``name`` up: a GGUF, a folder, else the hub.

    Raises:
        CompileError: when it is none of them or not fit to serve.
        ModelError: when it is a GGUF that is damaged or out of scope.
    """
    path = Path(name)
    if path.is_file():
        inspect_gguf(path)
        return Source(name, "gguf", (path,), path.stat().st_size)
    if path.is_dir():
        return _folder(name, "folder", path)
    if not _HUB_NAME.match(name) or name.startswith((".", "/")):
        raise CompileError(
            f"{name}: neither a folder nor a GGUF file nor a name on the hub such as owner/model"
        )
    python = converter.install(console)
    with stage(console, f"downloading {name}") as on_progress:
        return _folder(name, "hub", converter.download(python, name, on_progress))


def unquantised(source: Source, workspace: Workspace, console: Console) -> tuple[Path, Stage]:
    """The source as a GGUF, converted unless that is done already.

    Raises:
        CompileError: when the converter fails or the disk is too small.
    """
    if source.checkpoint is None:
        (path,) = source.files
        return path, Stage("source", source.key, path.name, source.size, 0.0, 0)
    half = source.checkpoint.half_type
    key = key_of("convert", source.key, half, converter.REQUIREMENTS.read_text(encoding="utf-8"))
    done = workspace.find("convert", key)
    if done is None:
        done = _convert(source.checkpoint, workspace, key, console)
    return workspace.path(done.file), done


def half_or_own_type(source: Source) -> str:
    """The type that the source has already; "quantised" when it does not say which."""
    if source.checkpoint is not None:
        return source.checkpoint.half_type
    with GgufFile(source.files[0]) as file:
        stated = file.uint("general.file_type")
        kinds = {tensor.type_name.upper() for tensor in file.tensors.values()}
    by_number = {number: name for name, number in FILE_TYPES.items()}
    quantised = by_number.get(-1 if stated is None else stated, "quantised")
    return next((name for name in ("BF16", "F16", "F32") if kinds <= {name, "F32"}), quantised)


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _folder(name: str, kind: str, folder: Path) -> Source:
    found = checkpoint.inspect(folder)
    extra = [folder / file for file in ("config.json", "tokenizer.model", "tokenizer.json")]
    files = (*found.weights, *(path for path in extra if path.is_file()))
    return Source(name, kind, files, sum(path.stat().st_size for path in found.weights), found)


def _convert(
    source: checkpoint.Checkpoint, workspace: Workspace, key: str, console: Console
) -> Stage:
    python = converter.install(console)
    space.check(workspace.folder, {f"the {source.half_type} model": source.half_size})
    target = workspace.path(f"unquantised-{source.half_type}.gguf")
    part = target.with_name(target.name + ".part")
    began = time.monotonic()
    with stage(console, f"converting to {source.half_type}") as on_progress:
        folder = Path(os.path.realpath(source.folder))
        peak = converter.convert(python, folder, part, source.half_type, on_progress)
    inspect_gguf(part)
    part.replace(target)
    seconds = time.monotonic() - began
    done = Stage("convert", key, target.name, target.stat().st_size, seconds, peak)
    workspace.add(done)
    return done
