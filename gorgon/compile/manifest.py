"""manifest.json of a compiled folder: what is in it, where it came from, how it did.

Read by ``gorgon serve DIR`` too, so nothing here needs more than the serving install.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gorgon.errors import ModelError

FORMAT = 1
NAME = "manifest.json"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A compiled folder's contents; ``details`` is everything that only people read.

    ``chat_template`` is the name of a format, or ``TEMPLATE`` where the folder holds a file of it.
    """

    model: str
    model_size: int
    heads: str | None = None
    chat_template: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The file's contents."""
        return {
            "format": FORMAT,
            "model": self.model,
            "model_size": self.model_size,
            "heads": self.heads,
            "chat_template": self.chat_template,
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiled folder serves; ``chat_template`` is a format's name or a file's path."""

    model: Path
    heads: Path | None
    chat_template: str | None


def read(folder: Path) -> Compiled:
    """What ``folder`` serves.

    Raises:
        ModelError: when it is no compiled folder or a file of it is missing or truncated.
    """
    path = folder / NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ModelError(f"{path}: format {value['format']}, this Gorgon reads {FORMAT}")
        model, heads = folder / str(value["model"]), value["heads"]
        size, template = int(value["model_size"]), value["chat_template"]
    except OSError as error:
        raise ModelError(
            f"{folder}: no {NAME} ({error.strerror}); make the folder with gorgon compile"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: damaged ({error}); compile the folder again") from error
    actual = model.stat().st_size if model.is_file() else 0
    if actual != size:
        raise ModelError(f"{model}: {actual:,} of {size:,} bytes; compile the folder again")
    for name in (heads, TEMPLATE if template == TEMPLATE else None):
        if name is not None and not (folder / str(name)).is_file():
            raise ModelError(f"{folder / str(name)}: missing; compile the folder again")
    return Compiled(
        model,
        None if heads is None else folder / str(heads),
        str(folder / TEMPLATE) if template == TEMPLATE else template,
    )
