"""Prompts for training: read from a file of unknown quality, split, and turned into jobs."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from gorgon.errors import TrainingError

Encode = Callable[[str], list[int]]

_MAX_LINE_BYTES = 1 << 20
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_INVENTED_TOKENS = 96
_INVENTED_TEMPERATURES = (0.7, 1.0)
_ANSWER_TEMPERATURES = (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Job:
    """A text to be continued: ``tokens`` given, drawn at ``temperature`` up to ``max_tokens``.

    ``index`` tells jobs apart and, with a run's seed, decides what is drawn.
    """

    index: int
    tokens: Sequence[int]
    temperature: float
    max_tokens: int


@dataclass(slots=True)
class Prompts:
    """The usable prompts of a file, and why lines were left out: reason to count."""

    texts: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    first_bad: str | None = None


def read_prompts(path: Path) -> Prompts:
    """Read one prompt a line: plain text, or with a name in .jsonl objects with ``prompt``.

    Files may be packed (.xz, .gz, .bz2). Lines that are empty, over 1 MiB, doubled or malformed
    are counted and left out.

    Raises:
        TrainingError: when the file cannot be read, or more lines are malformed than usable.
    """
    packed = path.suffix in _OPENERS
    name = path.with_suffix("").name if packed else path.name
    parse = _parse_json if name.endswith((".jsonl", ".json")) else _parse_text
    prompts, seen = Prompts(), set[str]()
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(_lines(file), 1):
                _take(prompts, seen, line, parse, f"{path}:{number}")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"{path}: {reason}; give a file with one prompt a line") from error
    if not prompts.texts or prompts.skipped["malformed"] > len(prompts.texts):
        raise TrainingError(
            f"{prompts.first_bad or path}: no prompts here; give one prompt a line, or .jsonl "
            'with {"prompt": "..."} a line'
        )
    return prompts


def split(texts: Sequence[str], held_out: int, seed: int) -> tuple[list[str], list[str]]:
    """Shuffled prompts to train on, and ``held_out`` of them to measure with."""
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    shuffled = [texts[i] for i in order]
    return shuffled[held_out:], shuffled[:held_out]


def answer_jobs(
    prompts: Iterable[Sequence[int]], num_answers: int, max_tokens: int, seed: int
) -> Iterator[Job]:
    """Answers to each prompt: one greedy, the others at temperatures of 0.5 to 1.0.

    With a single one, every second prompt is answered greedily.
    """
    numbers = itertools.product(prompts, range(num_answers))
    for index, (tokens, number) in enumerate(numbers):
        temperature = np.random.default_rng([seed, index]).uniform(*_ANSWER_TEMPERATURES)
        is_greedy = number == 0 if num_answers > 1 else index % 2 == 0
        yield Job(index, tokens, 0.0 if is_greedy else float(temperature), max_tokens)


def invention_jobs(empty_turn: Sequence[int], count: int, seed: int) -> Iterator[Job]:
    """The model writes the user's turn itself (Magpie, Xu et al., 2024)."""
    for index in range(count):
        temperature = np.random.default_rng([seed, index, 1]).uniform(*_INVENTED_TEMPERATURES)
        yield Job(index, empty_turn, float(temperature), _INVENTED_TOKENS)


def empty_turn(encode: Encode) -> tuple[list[int], list[int]]:
    """What a chat template puts before and behind a user's words, as tokens."""
    one, other = encode("Apple"), encode("Zebra")
    return _shared(one, other), _shared(one[::-1], other[::-1])[::-1]


def _shared(one: Sequence[int], other: Sequence[int]) -> list[int]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return list(one[:length])


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines; None for one that is over the limit, which is never held in memory."""
    while line := file.readline(_MAX_LINE_BYTES):
        if len(line) < _MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)
        yield None


def _take(
    prompts: Prompts,
    seen: set[str],
    line: bytes | None,
    parse: Callable[[str], str | None],
    place: str,
) -> None:
    try:
        text = None if line is None else parse(line.decode("utf-8-sig").strip())
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are such
        text = None
        prompts.first_bad = prompts.first_bad or place
        reason = "malformed"
    else:
        reason = "too long" if line is None else "empty" if not text else "doubled"
    if not text or text in seen:
        prompts.skipped[reason] += 1
        return
    seen.add(text)
    prompts.texts.append(text)


def _parse_text(line: str) -> str:
    if "\0" in line:
        raise ValueError("binary data")
    return line


def _parse_json(line: str) -> str:
    if not line:
        return ""
    entry = json.loads(line)
    text = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise ValueError("no text at 'prompt'")
    text.encode("utf-8")  # lone surrogates have no tokens
    return text.strip()
