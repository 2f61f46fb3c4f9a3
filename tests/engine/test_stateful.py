"""The engine as a state machine: hypothesis submits, cancels, fails and steps as it likes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gorgon.errors import HeadsError, QueueFullError, RequestError
from gorgon.request import FinishReason, SamplingParams, SpeculationParams
from tests.engine.driver import Answer, Driver, prompts, samplings, speculations
from tests.fake import Failures, FakeBackend, ToyModel


class EngineMachine(RuleBasedStateMachine):
    """``Driver`` checks the books after every step; here is what is done to the engine."""

    @initialize(
        agreement=st.sampled_from([0.0, 0.5, 1.0]),
        max_sequences=st.sampled_from([6, 12, 40]),
        num_cells=st.sampled_from([64, 100, 300]),
        trash_cells=st.sampled_from([0, 8, 100]),
        cached_cells=st.sampled_from([0, 30, 200]),
        chunk=st.integers(1, 16),
        heads=st.sampled_from([(False, 0), (True, 0), (True, 2)]),
    )
    def load(
        self,
        agreement: float,
        max_sequences: int,
        num_cells: int,
        trash_cells: int,
        cached_cells: int,
        chunk: int,
        heads: tuple[bool, int],
    ) -> None:
        self.driver = Driver(
            FakeBackend(
                ToyModel(eog_ids=frozenset([3])),
                conditioned=heads[0],
                window=heads[1],
                agreement=agreement,
                max_sequences=max_sequences,
                num_cells=num_cells,
                failures=Failures(leave_cells=True),
            ),
            max_running=4,
            max_waiting=6,
            prefill_chunk=chunk,
            prefill_batch=chunk + 8,
            trash_cells=trash_cells,
            cached_cells=cached_cells,
        )

    @rule(
        prompt=prompts(),
        max_tokens=st.integers(1, 24),
        speculation=speculations,
        sampling=samplings,
        ignore_eos=st.booleans(),
        reuse_prefix=st.booleans(),
    )
    def submit(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        speculation: SpeculationParams,
        sampling: SamplingParams,
        ignore_eos: bool,
        reuse_prefix: bool,
    ) -> None:
        num_waiting = len(self.driver.engine.scheduler.waiting)
        try:
            self.driver.submit(
                prompt,
                max_tokens,
                speculation,
                sampling,
                ignore_eos=ignore_eos,
                reuse_prefix=reuse_prefix,
            )
        except QueueFullError:
            assert num_waiting == 6
        except RequestError:
            assert len(prompt) + max_tokens + 11 > self.driver.backend.num_cells

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        self.driver.step(count)

    @precondition(lambda self: any(not answer.is_over for answer in self.answers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_answers = [answer for answer in self.answers if not answer.is_over]
        self.driver.cancel(data.draw(st.sampled_from(open_answers)))

    @rule(kind=st.sampled_from(["decodes", "prefills", "proposes", "deepens"]))
    def fail_the_next(self, kind: str) -> None:
        failures = self.driver.backend.failures
        setattr(failures, kind, frozenset([failures.counts[kind]]))

    @rule()
    def forget_prefixes(self) -> None:
        self.driver.engine.pool.forget_prefixes()
        self.driver.check()

    @precondition(lambda self: self.driver.engine.has_work)
    @rule()
    def fail_all(self) -> None:
        for result in self.driver.engine.fail_all(HeadsError("injected")):
            answer = self.driver.answers[result.request_id]
            assert not answer.is_over
            answer.finish, answer.error = result.finish, result.error
        assert all(answer.is_over for answer in self.answers)
        self.driver.check()

    @property
    def answers(self) -> list[Answer]:
        return list(self.driver.answers.values())

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.close()
        for answer in self.answers:
            if answer.request.speculation.acceptance == "lossless":
                whole = self.driver.backend.model.generate(answer.request)
                assert answer.tokens == whole[: len(answer.tokens)]
                if answer.finish not in (None, FinishReason.ERROR):
                    assert answer.tokens == whole


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40)
