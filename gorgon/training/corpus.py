"""What a model wrote, with the states it had: files that grow text by text and map into memory.

    texts.i64    one row a text: first token, tokens, given ones, temperature in 1/1000, job
    tokens.i32   the texts' tokens, one after another
    best.i32     for each token the model's likeliest successor
    states.f16   for each token the state after the final norm

The first file is written last, so that what it lists is complete; the rest is cut off on opening.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gorgon.errors import TrainingError
from gorgon.training.prompts import Job

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
_COLUMNS = 5
_ROW_BYTES = 8 * _COLUMNS
_TYPES = {"tokens.i32": np.int32, "best.i32": np.int32, "states.f16": np.float16}


@dataclass(frozen=True)
class Corpus:
    """Texts one after another; arrays may be memory maps.

    ``starts`` [texts + 1] are the offsets of the texts, ``given`` [texts] how many of their tokens
    were prompt, ``temperatures`` [texts] how the rest was drawn, ``jobs`` [texts] which jobs
    they are. ``states`` is an array or, once moved there, a tensor on a device.
    """

    tokens: Ints
    best: Ints
    states: Any
    starts: Longs
    given: Longs
    temperatures: npt.NDArray[np.float32]
    jobs: Longs

    @property
    def num_texts(self) -> int:
        """How many texts there are."""
        return len(self.given)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that the model wrote itself."""
        return int(self.starts[-1] - self.given.sum())

    def positions(self, texts: npt.NDArray[np.int64]) -> Longs:
        """Positions that heads are run at in ``texts``: from the last prompt token on."""
        firsts, lasts = self.starts[texts] + self.given[texts] - 1, self.starts[texts + 1] - 1
        counts = np.maximum(lasts - firsts, 0)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(firsts, counts) + offsets, np.int64)


class CorpusWriter:
    """Appends texts to the files in ``folder``; goes on where an earlier one stopped.

    ``done`` are the jobs whose texts are there, ``num_tokens`` counts the tokens.

    Raises:
        TrainingError: when a file cannot be written; complete texts stay.
    """

    def __init__(self, folder: Path, num_embd: int) -> None:
        self._folder, self._num_embd = folder, num_embd
        self._opened = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._index = self._enter("texts.i64")
            self._index.truncate(self._index.tell() // _ROW_BYTES * _ROW_BYTES)
            rows = _read_index(folder)
            self.done = set(rows[:, 4].tolist())
            self.num_tokens = int(rows[-1, :2].sum()) if len(rows) else 0
            self._files = {name: self._open(name, _TYPES[name]) for name in _TYPES}
        except OSError as error:
            self.close()
            raise _failed(folder, error) from error

    def _enter(self, name: str) -> Any:
        return self._opened.enter_context((self._folder / name).open("ab"))

    def _open(self, name: str, kind: type[Any]) -> Any:
        size = np.dtype(kind).itemsize * (self._num_embd if name == "states.f16" else 1)
        file = self._enter(name)
        if file.tell() < self.num_tokens * size:
            self.close()
            raise TrainingError(f"{self._folder}/{name}: damaged; remove the folder and start over")
        file.truncate(self.num_tokens * size)
        return file

    def append(
        self,
        tokens: Sequence[int],
        best: npt.ArrayLike,
        states: npt.NDArray[Any],
        job: Job,
    ) -> None:
        """Add the text of ``job``: ``best`` [n] and ``states`` [n, num_embd] for its n tokens."""
        parts = dict(zip(_TYPES, (tokens, best, states), strict=True))
        temperature = round(job.temperature * 1000)
        row = (self.num_tokens, len(tokens), len(job.tokens), temperature, job.index)
        try:
            for name, values in parts.items():
                self._files[name].write(np.ascontiguousarray(values, _TYPES[name]).tobytes())
                self._files[name].flush()
            self._index.write(np.array(row, np.int64).tobytes())
            self._index.flush()
        except OSError as error:
            raise _failed(self._folder, error) from error
        self.done.add(job.index)
        self.num_tokens += len(tokens)

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # every write was flushed: nothing is lost here
            self._opened.close()


def open_corpus(folder: Path, num_embd: int) -> Corpus:
    """The texts in ``folder``, states as a memory map.

    Raises:
        TrainingError: when there are none.
    """
    rows = _read_index(folder)
    if not len(rows):
        raise TrainingError(f"{folder}: holds no texts")
    count = int(rows[-1, :2].sum())
    maps = {
        name: np.memmap(folder / name, kind, "r", shape=_shape(name, count, num_embd))
        for name, kind in _TYPES.items()
    }
    return Corpus(
        tokens=maps["tokens.i32"],
        best=maps["best.i32"],
        states=maps["states.f16"],
        starts=np.append(rows[:, 0], count),
        given=rows[:, 2],
        temperatures=(rows[:, 3] / 1000).astype(np.float32),
        jobs=rows[:, 4],
    )


def _shape(name: str, count: int, num_embd: int) -> tuple[int, ...]:
    return (count, num_embd) if name == "states.f16" else (count,)


def _read_index(folder: Path) -> Longs:
    path = folder / "texts.i64"
    if not path.exists():
        return np.zeros((0, _COLUMNS), np.int64)
    return np.fromfile(path, np.int64).reshape(-1, _COLUMNS)


def _failed(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{folder}: {error.strerror or error}; make room and run the same command again to go on"
    )
