"""Prompt sets: the built-in one, or any JSON lines with ``turns``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gorgon.errors import BenchError

BUILT_IN = Path(__file__).parent / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The first turn of an entry."""

    id: str
    category: str
    text: str


def load_prompts(path: Path | None = None, count: int | None = None) -> list[Prompt]:
    """The prompts of a file, or ``count`` of them spread evenly over it.

    A line is an object with ``turns``, a list of texts of which the first is taken, and optionally
    ``id`` and ``category``.

    Raises:
        BenchError: naming the file and line that cannot be used.
    """
    path = path or BUILT_IN
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read the prompts {path}: {error}") from error
    prompts = [
        _parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise BenchError(f"{path} holds no prompt; a line is {{'turns': ['...']}}")
    return spread(prompts, count or len(prompts))


def spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """``count`` prompts at even distances; all, and again from the start, if there are fewer."""
    total = len(prompts)
    if count >= total:
        return [prompts[i % total] for i in range(count)]
    return [prompts[i * total // count] for i in range(count)]


def _parse(line: str, place: str) -> Prompt:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise BenchError(f"{place} is not JSON: {error}") from error
    turns = entry.get("turns") if isinstance(entry, dict) else None
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
        raise BenchError(f"{place}: 'turns' must be a list that begins with a text")
    return Prompt(str(entry.get("id", place)), str(entry.get("category", "all")), turns[0])
