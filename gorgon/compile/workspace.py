"""The folder in which a compilation grows: ``NAME.part`` beside the final ``NAME``.

Each finished stage is written down with a key over all that went into it, so that an interrupted
compilation goes on behind its last finished stage. The folder gets its final name at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gorgon.errors import CompileError

_STAGES = "stages.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: its file, what it cost, and the key over its inputs."""

    name: str
    key: str
    file: str
    size: int
    seconds: float
    peak_memory: int


class Workspace:
    """The folder ``target.part``; use through ``open_workspace``."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(target.name + ".part")
        self.stages = self._read()

    def path(self, name: str) -> Path:
        """Where the file ``name`` lies until the folder is finished."""
        return self.folder / name

    def find(self, name: str, key: str) -> Stage | None:
        """The finished stage ``name`` if nothing that went into it has changed."""
        stage = self.stages.get(name)
        if stage is None or stage.key != key:
            return None
        file = self.path(stage.file)
        return stage if file.is_file() and file.stat().st_size == stage.size else None

    def add(self, stage: Stage) -> None:
        """Write down a finished stage."""
        self.stages[stage.name] = stage
        records = [asdict(stage) for stage in self.stages.values()]
        write_json(self.path(_STAGES), records)

    def drop_unfinished(self) -> None:
        """Delete files that belong to no finished stage."""
        keep = {stage.file for stage in self.stages.values()} | {_STAGES}
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink() if path.is_file() else shutil.rmtree(path)

    def finish(self, keep: set[str]) -> None:
        """Delete all but the files named in ``keep`` and give the folder its final name."""
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()
        if self.target.exists():
            shutil.rmtree(self.target)
        self.folder.rename(self.target)

    def _read(self) -> dict[str, Stage]:
        try:
            records = json.loads(self.path(_STAGES).read_text(encoding="utf-8"))
            return {record["name"]: Stage(**record) for record in records}
        except (OSError, ValueError, TypeError, KeyError):
            return {}


@contextlib.contextmanager
def open_workspace(target: Path) -> Iterator[Workspace]:
    """The workspace of ``target``, held against other processes.

    An error of ours deletes it; an interrupt leaves its finished stages for the next run.

    Raises:
        CompileError: when another process compiles to the same place, or it cannot be written.
    """
    handle = _lock(target)
    try:
        workspace = Workspace(target)
        workspace.drop_unfinished()
        yield workspace
    except (KeyboardInterrupt, SystemExit):
        workspace.drop_unfinished()
        raise
    except OSError as error:
        shutil.rmtree(workspace.folder, ignore_errors=True)
        raise CompileError(f"{target}: {error.strerror or error}") from error
    except Exception:
        shutil.rmtree(workspace.folder, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _lock(target: Path) -> int:
    """Make the workspace's folder and hold it; the system lets go of it however we end."""
    folder = Workspace(target).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise CompileError(f"{target}: another gorgon compile writes it; wait for it") from None
    except OSError as error:
        raise CompileError(f"{target}: {error.strerror}; choose another --out") from error
    return handle


def key_of(*parts: Any) -> str:
    """A digest over JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` in one go."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
