"""First stage of training: the model writes, and its texts and states go into a corpus.

Through llama.cpp for any model and device; through PyTorch on CUDA, which is far faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from gorgon.config import EngineSettings
from gorgon.errors import TrainingError
from gorgon.llama.model import Model
from gorgon.training.answers import Answerer
from gorgon.training.corpus import CorpusWriter
from gorgon.training.generation import Generator, max_slots, states_of
from gorgon.training.prompts import Encode, Job, empty_turn, invention_jobs
from gorgon.training.transformer import Transformer

_CPU_SLOTS, _GPU_SLOTS = 4, 64
_MEMORY_SHARE = 0.6
_TEXTS_PER_PASS = 4096


class Author(Protocol):
    """A model that continues texts."""

    def write(self, jobs: Iterable[Job], corpus: CorpusWriter) -> Iterator[int]:
        """Append every finished text to ``corpus``; yields the tokens drawn for each."""

    def draw(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[int], bool]]:
        """Job, all tokens, and whether the model ended the text itself."""

    def close(self) -> None:
        """Free memory."""


class LlamaAuthor:
    """llama.cpp as author."""

    def __init__(
        self, model: Model, settings: EngineSettings, num_slots: int, num_cells: int, seed: int
    ) -> None:
        self._answerer = Answerer(model, settings, num_slots, num_cells, seed)

    def write(self, jobs: Iterable[Job], corpus: CorpusWriter) -> Iterator[int]:
        """See ``Author``."""
        for answer in self._answerer.run(jobs):
            corpus.append(answer.tokens, answer.best, answer.states, answer.job)
            yield len(answer.tokens) - len(answer.job.tokens)

    def draw(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[int], bool]]:
        """See ``Author``."""
        for answer in self._answerer.run(jobs):
            yield answer.job, answer.tokens, answer.ended

    def close(self) -> None:
        """See ``Author``."""
        self._answerer.close()


class TorchAuthor:
    """PyTorch on CUDA as author: texts by thousands, their states in a second pass."""

    def __init__(
        self,
        path: Path,
        eog_ids: Iterable[int],
        device: torch.device,
        num_slots: int,
        num_cells: int,
        seed: int,
    ) -> None:
        on_gpu = device.type == "cuda"
        torch.backends.cuda.matmul.allow_tf32 = True
        self._model = Transformer(path, device, torch.bfloat16 if on_gpu else torch.float32)
        if not num_slots and on_gpu:
            free, _ = torch.cuda.mem_get_info()
            num_slots = min(4096, max_slots(self._model, num_cells, free * _MEMORY_SHARE))
        self._num_cells = num_cells
        self._generator = Generator(self._model, eog_ids, num_slots or _CPU_SLOTS, num_cells, seed)

    def write(self, jobs: Iterable[Job], corpus: CorpusWriter) -> Iterator[int]:
        """See ``Author``."""
        texts = self._generator.run(self._fitting(jobs))
        while part := list(islice(texts, _TEXTS_PER_PASS)):
            for batch, states, best in states_of(self._model, [text.tokens for text in part]):
                self._append(corpus, [(part[i].job, part[i].tokens) for i in batch], states, best)
                for i in batch:
                    yield len(part[i].tokens) - len(part[i].job.tokens)

    def _append(
        self,
        corpus: CorpusWriter,
        texts: Sequence[tuple[Job, list[int]]],
        states: torch.Tensor,
        best: torch.Tensor,
    ) -> None:
        lengths = [len(tokens) for _, tokens in texts]
        all_states, all_best = states.cpu().split(lengths), best.cpu().split(lengths)
        for (job, tokens), some, chosen in zip(texts, all_states, all_best, strict=True):
            corpus.append(tokens, chosen.numpy(), some.numpy(), job)

    def draw(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[int], bool]]:
        """See ``Author``."""
        for text in self._generator.run(self._fitting(jobs)):
            yield text.job, text.tokens, text.ended

    def _fitting(self, jobs: Iterable[Job]) -> Iterator[Job]:
        return (job for job in jobs if 0 < len(job.tokens) < self._num_cells)

    def close(self) -> None:
        """See ``Author``."""
        del self._generator, self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def default_slots(device: torch.device) -> int:
    """Texts at once through llama.cpp: on CPUs attention over the others' cells costs too much."""
    return _GPU_SLOTS if device.type == "cuda" else _CPU_SLOTS


def encode_all(
    texts: Iterable[str], encode: Encode, max_tokens: int
) -> tuple[list[list[int]], int]:
    """Token ids of the prompts of at most ``max_tokens``, and how many were longer."""
    encoded = [encode(text) for text in texts]
    fitting = [tokens for tokens in encoded if len(tokens) <= max_tokens]
    return fitting, len(encoded) - len(fitting)


def invent(
    author: Author, encode: Encode, count: int, seed: int, tick: Callable[[], None]
) -> list[list[int]]:
    """Whole prompts whose user turn the model made up; those that it ended, each once.

    Raises:
        TrainingError: when the chat template shows no place for a user's words.
    """
    before, behind = empty_turn(encode)
    if not before or not behind:
        raise TrainingError("the chat template has no user turn to fill; leave out --num-invented")
    found: set[tuple[int, ...]] = set()
    for job, tokens, ended in author.draw(invention_jobs(before, count, seed)):
        if ended and len(tokens) > len(job.tokens) + 2:
            found.add(tuple(tokens[len(job.tokens) :]))
        tick()
    return [[*before, *words, *behind] for words in sorted(found)]
