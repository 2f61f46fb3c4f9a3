"""`llama_decode` in a loop, one token a pass and stream, nothing around it.

The floor under every engine in process: no scheduler, no trees, no heads. On a CPU it computes with
the kernels that the process has: ours, unless `GORGON_KERNELS=0` leaves them out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gorgon.backend import BatchRow
from gorgon.bench.answer import Answer, Load
from gorgon.bench.document import PartyInfo, StepShare
from gorgon.bench.inprocess import Encode, Vocabulary
from gorgon.bench.machine import resident_mb
from gorgon.bench.prompts import Prompt
from gorgon.config import EngineSettings
from gorgon.llama.backend import default_model
from gorgon.llama.context import Context
from gorgon.llama.model import Model
from gorgon.llama.sampler import make_sampler
from gorgon.request import SamplingParams


@dataclass(slots=True)
class LoopParty:
    """All prompts of a group of ``clients`` at once: prompts first, then step by step.

    Every stream runs to the full length: this is a clock, not a server.
    """

    info: PartyInfo
    model: Model
    context: Context
    vocabulary: Vocabulary
    encode: Encode

    @classmethod
    def load(cls, info: PartyInfo, settings: EngineSettings, encode: Encode) -> LoopParty:
        """A model and context of its own."""
        model = Model(settings, settings.model or default_model())
        return cls(info, model, Context(model, settings), model, encode)

    def run(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        """See ``Party``."""
        answers = []
        for first in range(0, len(prompts), load.clients):
            answers += self._run_group(prompts[first : first + load.clients], load)
        return answers

    def _run_group(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        ids = [list(self.encode(prompt.text)) for prompt in prompts]
        params = SamplingParams(temperature=load.temperature, seed=load.seed)
        samplers = [make_sampler(self.context, params, prompt) for prompt in ids]
        self.context.clear()
        started = time.perf_counter()
        for sequence, prompt in enumerate(ids):
            self._prefill(prompt[:-1], sequence)
        tokens, arrivals = [prompt[-1] for prompt in ids], list[float]()
        texts: list[list[int]] = [[] for _ in ids]
        for step in range(load.length):
            output = self.context.decode(
                [
                    BatchRow(token, len(ids[sequence]) - 1 + step, (sequence,))
                    for sequence, token in enumerate(tokens)
                ]
            )
            tokens = [sampler.draw(output, row) for row, sampler in enumerate(samplers)]
            arrivals.append(time.perf_counter())
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
        for sampler in samplers:
            sampler.close()
        return [
            self._answer(prompt, started, arrivals, text, len(prompt_ids))
            for prompt, text, prompt_ids in zip(prompts, texts, ids, strict=True)
        ]

    def _prefill(self, prompt: Sequence[int], sequence: int) -> None:
        for first in range(0, len(prompt), self.context.max_rows):
            part = prompt[first : first + self.context.max_rows]
            rows = [BatchRow(t, first + i, (sequence,)) for i, t in enumerate(part)]
            self.context.prefill(rows)

    def _answer(
        self,
        prompt: Prompt,
        started: float,
        arrivals: Sequence[float],
        tokens: Sequence[int],
        prompt_tokens: int,
    ) -> Answer:
        text = b"".join(map(self.vocabulary.piece, tokens)).decode("utf-8", "replace")
        return Answer(prompt, started, arrivals, text, len(tokens), prompt_tokens)

    def close(self) -> None:
        """Free context and model."""
        self.context.close()
        self.model.close()

    def take_step_share(self) -> StepShare | None:
        """There is nothing but the model."""
        return None

    def resident_mb(self) -> float | None:
        """Of this process, whoever else is in it."""
        return resident_mb(os.getpid())
