"""A model's own answers through llama.cpp, several at once, with the states it had.

Works for every model that Gorgon serves, on the CPU or a GPU. Prompt chunks give no states, as in
serving; a text's states before its last prompt token are zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gorgon.backend import BatchRow, Floats
from gorgon.config import EngineSettings
from gorgon.errors import DecodeError
from gorgon.llama.context import Context
from gorgon.llama.model import Model
from gorgon.training.prompts import Job


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished job: all tokens, what the model would have chosen after each, its states.

    ``ended`` says whether the model ended it, not the limit.
    ``best`` [n] and ``states`` float16 [n, num_embd] are zeros before the last prompt token.
    """

    job: Job
    tokens: list[int]
    ended: bool
    best: npt.NDArray[np.int32]
    states: npt.NDArray[np.float16]


@dataclass(slots=True)
class _Slot:
    """A text under way; ``tokens`` end in one that is not computed yet."""

    sequence: int
    job: Job
    tokens: list[int]
    random: np.random.Generator
    best: list[int] = field(default_factory=list)
    states: list[npt.NDArray[np.float16]] = field(default_factory=list)


class Answerer:
    """Continues up to ``num_slots`` texts of at most ``num_cells`` tokens at once.

    Args:
        model: loaded; must outlive this.
        settings: threads and device.
        num_slots: texts computed in one forward pass.
        num_cells: given and drawn tokens of one text, at most.
        seed: of all draws.

    Raises:
        ModelError: when there is no memory for the cache.
    """

    def __init__(
        self, model: Model, settings: EngineSettings, num_slots: int, num_cells: int, seed: int
    ) -> None:
        self._model, self._seed = model, seed
        self._num_slots, self._num_cells = num_slots, num_cells
        sizes = {"num_cells": num_slots * num_cells, "max_running": min(num_slots, 128)}
        self._context = Context(model, settings.model_copy(update=sizes))

    def close(self) -> None:
        """Free the cache."""
        self._context.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Answer]:
        """Finished answers in the order in which they end; jobs that do not fit are left out.

        Raises:
            DecodeError: when llama.cpp fails.
        """
        waiting = (job for job in jobs if 0 < len(job.tokens) < self._num_cells)
        free = list(range(self._num_slots))
        running: list[_Slot] = []
        while True:
            while free and (job := next(waiting, None)) is not None:
                running.append(self._start(free.pop(), job))
            if not running:
                return
            self._step(running)
            for slot in [slot for slot in running if self._has_ended(slot)]:
                running.remove(slot)
                free.append(slot.sequence)
                self._context.remove(slot.sequence)
                yield self._finish(slot)

    def _start(self, sequence: int, job: Job) -> _Slot:
        tokens = list(job.tokens)
        rows = [BatchRow(token, i, [sequence]) for i, token in enumerate(tokens[:-1])]
        size = self._context.max_rows
        for i in range(0, len(rows), size):
            self._context.prefill(rows[i : i + size])
        return _Slot(sequence, job, tokens, np.random.default_rng([self._seed, job.index, 2]))

    def _step(self, running: Sequence[_Slot]) -> None:
        rows = [
            BatchRow(slot.tokens[-1], len(slot.tokens) - 1, [slot.sequence]) for slot in running
        ]
        output = self._context.decode(rows)
        if not np.isfinite(output.hidden).all():
            raise DecodeError("the model computes states that are no numbers; its file is damaged")
        best = output.logits.argmax(axis=1)
        states = output.hidden.astype(np.float16)
        for i, slot in enumerate(running):
            slot.best.append(int(best[i]))
            slot.states.append(states[i])
            slot.tokens.append(_draw(output.logits[i], slot.job.temperature, slot.random))

    def _has_ended(self, slot: _Slot) -> bool:
        limit = min(len(slot.job.tokens) + slot.job.max_tokens, self._num_cells)
        return len(slot.tokens) > limit or slot.tokens[-1] in self._model.eog_ids

    def _finish(self, slot: _Slot) -> Answer:
        tokens = slot.tokens[:-1]  # the last one ended the text or was not computed
        best = np.zeros(len(tokens), np.int32)
        best[-len(slot.best) :] = slot.best
        states = np.zeros((len(tokens), self._model.info.num_embd), np.float16)
        states[-len(slot.states) :] = slot.states
        ended = slot.tokens[-1] in self._model.eog_ids
        return Answer(slot.job, tokens, ended, best, states)


def _draw(logits: Floats, temperature: float, random: np.random.Generator) -> int:
    """A sample by the inverse of the cumulative distribution; the argmax at temperature 0."""
    if temperature == 0.0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / temperature)
    totals = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(totals, random.random() * totals[-1], side="right"))
