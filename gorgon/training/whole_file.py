"""Files that appear under their name only when they are complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gorgon.errors import TrainingError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then give it that name.

    Raises:
        TrainingError: when it cannot be written; what was at ``path`` is still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as RuntimeError
        raise TrainingError(
            f"{path}: {getattr(error, 'strerror', None) or error}; make room and run the same "
            "command again to go on"
        ) from error
    finally:
        part.unlink(missing_ok=True)
