"""A model's own text on CUDA: thousands of slots, one token each a step, refilled as they end.

Prompt tokens go through the same step as drawn ones, only that their successor is given. So one
captured graph does everything, and slots of all lengths and ages share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gorgon.training.prompts import Job
from gorgon.training.transformer import Cache, Transformer

_STEPS_PER_ROUND = 32  # between two looks at which slots have ended


@dataclass(frozen=True, slots=True)
class Text:
    """A finished job: its given tokens and the drawn ones, without what ended it.

    ``ended`` says whether the model ended it, not the limit.
    """

    job: Job
    tokens: list[int]
    ended: bool


class Generator:
    """Continues texts in ``num_slots`` slots of ``num_cells`` tokens.

    Args:
        model: the model.
        eog_ids: tokens that end a text.
        num_slots: texts at once.
        num_cells: given and drawn tokens of one text, at most.
        seed: of all draws.
    """

    def __init__(
        self,
        model: Transformer,
        eog_ids: Iterable[int],
        num_slots: int,
        num_cells: int,
        seed: int,
    ) -> None:
        self._model = model
        self._device = model.embedding.device
        self._num_slots, self._num_cells = num_slots, num_cells
        torch.manual_seed(seed)
        self._cache = Cache(model.shape, num_slots, num_cells, model.embedding)
        self._is_eog = torch.zeros(model.num_vocab, dtype=torch.bool, device=self._device)
        self._is_eog[list(eog_ids)] = True
        self._texts = self._zeros(num_cells, dtype=torch.int64)
        self._num_given = self._zeros(dtype=torch.int64)
        self._limits = self._zeros(dtype=torch.int64)
        self._positions = self._zeros(dtype=torch.int64)
        self._temperatures = self._zeros(dtype=torch.float32)
        self._done = torch.ones(num_slots, dtype=torch.bool, device=self._device)
        self._ended = torch.zeros_like(self._done)
        self._run_round = self._capture() if self._device.type == "cuda" else self._round

    def run(
        self, jobs: Iterable[Job], deadline: Callable[[], bool] = lambda: False
    ) -> Iterator[Text]:
        """Finished texts in the order in which they end.

        Args:
            jobs: what to continue; each must leave room in ``num_cells``.
            deadline: asked once a round; once true, texts under way are dropped.
        """
        waiting = iter(jobs)
        running: list[Job | None] = [None] * self._num_slots
        while not deadline():
            self._fill(waiting, running)
            if not any(running):
                return
            self._run_round()
            yield from self._harvest(running)

    def _fill(self, waiting: Iterator[Job], running: list[Job | None]) -> None:
        free = [slot for slot, job in enumerate(running) if job is None]
        jobs = [job for _, job in zip(free, waiting, strict=False)]
        if not jobs:
            return
        slots = free[: len(jobs)]
        rows = np.zeros((len(jobs), self._num_cells), np.int64)
        for row, slot, job in zip(rows, slots, jobs, strict=True):
            assert 0 < len(job.tokens) < self._num_cells
            row[: len(job.tokens)] = job.tokens
            running[slot] = job
        given = [len(job.tokens) for job in jobs]
        limits = [min(len(job.tokens) + job.max_tokens, self._num_cells) for job in jobs]
        index = torch.tensor(slots, device=self._device)
        self._texts[index] = torch.from_numpy(rows).to(self._device)
        self._num_given[index] = torch.tensor(given, device=self._device)
        self._limits[index] = torch.tensor(limits, device=self._device)
        temperatures = [job.temperature for job in jobs]
        self._temperatures[index] = torch.tensor(temperatures, device=self._device)
        self._positions[index] = 0
        self._done[index] = False
        self._ended[index] = False

    def _harvest(self, running: list[Job | None]) -> Iterator[Text]:
        done = self._done.cpu().numpy()
        slots = [slot for slot, job in enumerate(running) if job is not None and done[slot]]
        if not slots:
            return
        index = torch.tensor(slots, device=self._device)
        rows = self._texts[index].cpu().numpy()
        lengths = (self._positions[index] + 1).tolist()
        ended = self._ended[index].tolist()
        for slot, row, length, end in zip(slots, rows, lengths, ended, strict=True):
            job = running[slot]
            assert job is not None
            running[slot] = None
            yield Text(job, row[:length].tolist(), end)

    @torch.no_grad()
    def _round(self) -> None:
        for _ in range(_STEPS_PER_ROUND):
            self._step()

    def _step(self) -> None:
        """One token in each slot; slots that are done repeat their last one."""
        tokens = self._texts.gather(1, self._positions[:, None])[:, 0]
        states = self._model.step(tokens, self._positions, self._cache)
        drawn = self._draw(self._model.logits(states))
        places = (self._positions + 1).clamp(max=self._num_cells - 1)
        given = self._texts.gather(1, places[:, None])[:, 0]
        is_given = places < self._num_given
        successors = torch.where(is_given, given, drawn)
        ended = self._is_eog[successors] & ~is_given
        full = self._positions + 1 >= self._limits
        self._ended |= ended & ~self._done
        self._done |= ended | full
        kept = torch.where(self._done, given, successors)
        self._texts.scatter_(1, places[:, None], kept[:, None])
        self._positions.copy_(torch.where(self._done, self._positions, places))

    def _draw(self, logits: Tensor) -> Tensor:
        """A sample at each slot's temperature, by the Gumbel-max trick; the argmax at 0."""
        noise = torch.empty_like(logits).exponential_().log_().neg_()
        return torch.addcmul(logits, noise, self._temperatures[:, None]).argmax(-1)

    @torch.no_grad()
    def _capture(self) -> Callable[[], None]:
        """The step as a CUDA graph, replayed a round's times."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()

        def run_round() -> None:
            for _ in range(_STEPS_PER_ROUND):
                graph.replay()

        return run_round

    def _zeros(self, *sizes: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self._num_slots, *sizes, dtype=dtype, device=self._device)


def states_of(
    model: Transformer, texts: Sequence[Sequence[int]], max_tokens: int = 32768
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """States and greedy successors of whole texts, in batches of similar length.

    Args:
        model: the model.
        texts: token ids.
        max_tokens: padded tokens a batch.

    Yields:
        (indices into ``texts``, states float16 [tokens, num_embd], successors int64 [tokens]),
        the texts' tokens one after another.
    """
    device = model.embedding.device
    for batch in _batches(texts, max_tokens):
        width = max(len(texts[i]) for i in batch)
        rows = np.zeros((len(batch), width), np.int64)
        for row, i in zip(rows, batch, strict=True):
            row[: len(texts[i])] = texts[i]
        lengths = torch.tensor([len(texts[i]) for i in batch], device=device)
        real = torch.arange(width, device=device) < lengths[:, None]
        states = model.states(torch.from_numpy(rows).to(device))[real]
        chunks = states.split(8192)
        best = torch.cat([model.logits(chunk).argmax(-1) for chunk in chunks])
        yield batch, states.half(), best


def _batches(texts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if batch and (len(batch) + 1) * len(texts[i]) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def max_slots(model: Transformer, num_cells: int, memory: float) -> int:
    """How many slots of ``num_cells`` fit into ``memory`` bytes, a multiple of 64."""
    shape = model.shape
    cell = 2 * shape.num_layers * shape.num_kv_heads * shape.head_width
    per_slot = cell * num_cells * model.embedding.element_size() + 16 * model.num_vocab
    return max(1, math.floor(memory / per_slot) // 64 * 64)
