"""An engine driven step by step in this process: no server, no HTTP, and a look at its clock."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gorgon.bench.answer import Answer, Drafts, Load, rounded
from gorgon.bench.document import PartyInfo, StepShare
from gorgon.bench.machine import resident_mb
from gorgon.bench.prompts import Prompt
from gorgon.bench.statistics import percentiles
from gorgon.engine.engine import Engine, StepTimes
from gorgon.errors import BenchError
from gorgon.request import Request, RequestStats, SamplingParams, SpeculationParams, StepResult

Encode = Callable[[str], Sequence[int]]


class Vocabulary(Protocol):
    """What turns tokens into text."""

    def piece(self, token: int) -> bytes:
        """Bytes that a token adds."""


@dataclass(slots=True)
class _Open:
    """A request under way."""

    number: int
    started: float
    prompt_tokens: int
    arrivals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    stats: RequestStats | None = None


@dataclass(slots=True)
class EngineParty:
    """One mode of an engine; several parties may share the engine, they run in turns."""

    info: PartyInfo
    engine: Engine
    vocabulary: Vocabulary
    encode: Encode
    speculation: SpeculationParams
    times: list[StepTimes] = field(default_factory=list)

    def run(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        """See ``Party``."""
        waiting = deque(enumerate(prompts))
        running: dict[str, _Open] = {}
        done: dict[int, _Open] = {}
        while waiting or running:
            while waiting and len(running) < load.clients:
                number, prompt = waiting.popleft()
                running[str(number)] = self._submit(number, prompt, load)
            for finished in self._advance(running, self.engine.step(), time.perf_counter()):
                done[finished.number] = finished
            self.times.append(self.engine.times)
        return [self._answer(prompt, done[number]) for number, prompt in enumerate(prompts)]

    def _submit(self, number: int, prompt: Prompt, load: Load) -> _Open:
        prompt_ids = tuple(self.encode(prompt.text))
        request = Request(
            id=str(number),
            prompt_ids=prompt_ids,
            max_tokens=load.length_of(prompt),
            sampling=SamplingParams(temperature=load.temperature, seed=load.seed + number),
            speculation=self.speculation,
            ignore_eos=not load.natural,
            reuse_prefix=False,
        )
        started = time.perf_counter()
        self.engine.submit(request)
        return _Open(number, started, len(prompt_ids))

    def _advance(
        self, running: dict[str, _Open], results: Iterable[StepResult], now: float
    ) -> list[_Open]:
        """Note what a step gave; the requests that it finished."""
        finished = []
        for result in results:
            if result.error is not None:
                raise BenchError(f"{self.info.name}: {result.error}") from result.error
            state = running[result.request_id]
            if result.tokens:
                state.arrivals.append(now)
                state.tokens += result.tokens
            if result.finish is not None:
                state.stats = result.stats
                finished.append(running.pop(result.request_id))
        return finished

    def _answer(self, prompt: Prompt, state: _Open) -> Answer:
        stats = state.stats or RequestStats()
        text = b"".join(map(self.vocabulary.piece, state.tokens)).decode("utf-8", "replace")
        return Answer(
            prompt=prompt,
            started=state.started,
            arrivals=state.arrivals,
            text=text,
            tokens=len(state.tokens),
            prompt_tokens=state.prompt_tokens,
            drafts=drafts_of(stats),
        )

    def take_step_share(self) -> StepShare | None:
        """See ``Party``."""
        times, self.times = self.times, []
        return share_of(times) if times else None

    def resident_mb(self) -> float | None:
        """Of this process: the benchmark's own share is in it."""
        return resident_mb(os.getpid())


def share_of(times: Sequence[StepTimes]) -> StepShare:
    """Percentiles over steps."""
    return StepShare(
        num_steps=len(times),
        total=rounded(percentiles([t.total for t in times])),
        model=rounded(percentiles([t.model for t in times])),
        heads=rounded(percentiles([t.heads for t in times])),
        outside=rounded(percentiles([t.overhead for t in times])),
    )


def drafts_of(stats: RequestStats) -> Drafts:
    """The engine's statistics of a request."""
    return Drafts(
        steps=stats.steps,
        drafted=stats.drafted,
        accepted=stats.accepted,
        drafted_by_depth=stats.drafted_by_depth,
        accepted_by_depth=stats.accepted_by_depth,
        drafted_by_source=dict(stats.drafted_by_source),
        accepted_by_source=dict(stats.accepted_by_source),
    )
