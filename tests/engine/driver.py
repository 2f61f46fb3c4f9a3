"""Drives the real engine on the fake backend and checks it after every step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gorgon.config import EngineSettings
from gorgon.engine.engine import Engine
from gorgon.engine.sequence import Sequence
from gorgon.request import (
    FinishReason,
    Request,
    RequestStats,
    SamplingParams,
    SpeculationParams,
    StepResult,
    TokenLogprob,
    TreePaths,
)
from gorgon.speculation.cost import StepCost, StepTimes
from tests.fake import FakeBackend

PLAIN = SpeculationParams(mode="normal")
CHAIN: TreePaths = ((0,), (0, 0), (0, 0, 0))
BUSH: TreePaths = ((0,), (0, 0), (0, 1), (1,), (1, 0), (2,))


def medusa(paths: TreePaths = BUSH, **params: Any) -> SpeculationParams:
    return SpeculationParams(tree=paths, **params)


@dataclass
class Answer:
    """What came out for one request."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    stats: RequestStats | None = None
    error: Exception | None = None
    cancelled: bool = False

    @property
    def is_over(self) -> bool:
        return self.cancelled or self.finish is not None

    @property
    def sure_stats(self) -> RequestStats:
        assert self.stats is not None
        return self.stats


def flat_cost() -> StepCost:
    """Tokens that cost next to nothing beside a step: every draft with a chance pays."""
    sizes = (1, 64)
    return StepCost(StepTimes((32,), sizes, np.array([[1.0, 1.01]])), 512)


class Driver:
    """An engine, its fake backend, and all answers so far."""

    def __init__(
        self, backend: FakeBackend | None = None, cost: StepCost | None = None, **settings: Any
    ) -> None:
        self.backend = backend or FakeBackend()
        settings = {"prefill_chunk": 16, "prefill_batch": 48} | settings
        self.engine = Engine(self.backend, EngineSettings(**settings), cost or flat_cost())
        self.answers: dict[str, Answer] = {}
        self._names = (f"r{i}" for i in itertools.count())

    def submit(
        self,
        prompt: tuple[int, ...] | list[int],
        max_tokens: int = 16,
        speculation: SpeculationParams = PLAIN,
        sampling: SamplingParams | None = None,
        **params: Any,
    ) -> Answer:
        return self.send(
            Request(
                next(self._names),
                tuple(prompt),
                max_tokens,
                sampling or SamplingParams(),
                speculation,
                **params,
            )
        )

    def send(self, request: Request) -> Answer:
        self.engine.submit(request)
        self.answers[request.id] = Answer(request)
        return self.answers[request.id]

    def cancel(self, answer: Answer) -> None:
        answer.cancelled |= not answer.is_over
        self.engine.cancel(answer.request.id)
        self.check()

    def step(self, count: int = 1) -> list[StepResult]:
        results = []
        for _ in range(count):
            results = self.engine.step()
            for result in results:
                self._note(result)
            self.check()
        return results

    def run(self, max_steps: int = 2000) -> None:
        """Until every request is over, which must be soon."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "the engine stalls"
        assert all(answer.is_over for answer in self.answers.values())
        assert self.engine.pool.num_trash_cells == 0
        assert self.backend.num_open_samplers == 0

    def close(self) -> None:
        """Run, forget prefixes, and find every cell and id free."""
        self.run()
        self.engine.pool.forget_prefixes()
        self.check()
        assert self.engine.pool.cells.num_used == self.backend.num_used == 0
        assert self.engine.pool.num_free_ids == self.backend.max_sequences - 1

    def running(self, answer: Answer) -> Sequence:
        return next(s for s in self.engine.scheduler.running if s.request is answer.request)

    def expect(self, answer: Answer) -> None:
        """The text of ``answer`` is what the model alone gives."""
        assert answer.tokens == self.backend.model.generate(answer.request)
        assert answer.finish in (FinishReason.STOP, FinishReason.LENGTH)

    def check(self) -> None:
        """The engine's books are right, and the backend holds what they say."""
        pool = self.engine.pool
        self.engine.check_integrity()
        assert self.backend.num_used == pool.cells.num_used
        for sequence in self.engine.scheduler.running:
            known = list(enumerate(sequence.tokens))
            assert self.backend.tokens_of(sequence.id) == known[: sequence.num_computed]
            for side in sequence.sides:
                assert self.backend.tokens_of(side.id) == known[: side.synced]
        for prefix in pool.prefixes:
            assert self.backend.tokens_of(prefix.id) == list(enumerate(prefix.tokens.tolist()))

    def _note(self, result: StepResult) -> None:
        answer = self.answers[result.request_id]
        assert not answer.is_over, "a result after the last one"
        assert len(result.tokens) == len(result.depths)
        assert result.tokens or result.finish is not None
        answer.tokens += result.tokens
        answer.depths += result.depths
        answer.logprobs += result.logprobs
        answer.finish, answer.stats, answer.error = result.finish, result.stats, result.error
        assert (result.finish is None) == (result.stats is None)
        assert (result.finish is FinishReason.ERROR) == (result.error is not None)
        assert len(answer.tokens) <= answer.request.max_tokens


@st.composite
def tree_paths(draw: st.DrawFn, max_nodes: int = 10) -> TreePaths:
    """Any tree that four heads with four guesses can fill, in any order of paths."""
    paths: list[tuple[int, ...]] = [()]
    picks = draw(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 3)), max_size=max_nodes))
    for parent, rank in picks:
        path = (*paths[parent % len(paths)], rank)
        if len(path) <= 4 and path not in paths:
            paths.append(path)
    return tuple(draw(st.permutations(paths[1:])))


TEXTS = tuple(tuple((i * i * step + i) % 29 for i in range(60)) for step in (1, 5, 7))


@st.composite
def prompts(draw: st.DrawFn) -> tuple[int, ...]:
    """The start of one of a few texts, so that prompts share prefixes, and something of its own."""
    text, length = draw(st.sampled_from(TEXTS)), draw(st.integers(1, 40))
    own = draw(st.lists(st.integers(0, 31), max_size=4))
    return (*text[:length], *own)


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 99),
)
AUTO, LOOKUP = SpeculationParams(), SpeculationParams(mode="lookup")
lossless = st.one_of(
    st.sampled_from([PLAIN, AUTO, LOOKUP]), st.builds(SpeculationParams, tree=tree_paths())
)
speculations = st.one_of(
    lossless,
    st.builds(
        SpeculationParams,
        tree=tree_paths(),
        acceptance=st.just("typical"),
        epsilon=st.sampled_from([0.01, 0.09, 0.9]),
    ),
)
