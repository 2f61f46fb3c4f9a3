"""The engine: one step is one forward pass for all running requests.

Single-threaded and passive: ``submit`` and ``cancel`` note things, ``step`` does them. Knows token
ids; text, HTTP and threads are elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from gorgon.backend import Backend, Output
from gorgon.config import EngineSettings
from gorgon.engine.drafter import Drafter
from gorgon.engine.pool import Placement, SequencePool
from gorgon.engine.scheduler import Scheduler, Waiting
from gorgon.engine.sequence import Sequence
from gorgon.errors import GorgonError, RequestError
from gorgon.request import FinishReason, Request, RequestStats, StepResult
from gorgon.speculation.acceptance import (
    Accepted,
    accept_lossless,
    accept_typical,
    log_softmax,
)
from gorgon.speculation.tree import DraftTree, parse_paths

logger = logging.getLogger("gorgon.engine")


@dataclass(slots=True)
class StepTimes:
    """Seconds that the last step took, and of these in the model and in the heads."""

    total: float = 0.0
    model: float = 0.0
    heads: float = 0.0

    @property
    def overhead(self) -> float:
        """Seconds outside the model and the heads."""
        return self.total - self.model - self.heads


class Engine:
    """Requests in, step results out.

    Args:
        backend: the model, with an empty cache; used by this engine alone.
        settings: limits and the default tree.
    """

    def __init__(self, backend: Backend, settings: EngineSettings) -> None:
        self.backend, self.settings = backend, settings
        self._drafter = Drafter(backend, parse_paths(settings.default_tree))
        self.times = StepTimes()
        self._reset()

    def _reset(self) -> None:
        self.backend.clear()
        self.pool = SequencePool(
            self.backend, self.settings.cached_cells, self.settings.trash_cells
        )
        self.scheduler = Scheduler(self.backend, self.settings)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def submit(self, request: Request) -> None:
        """Queue ``request``; its results come out of later steps.

        Raises:
            RequestError: when it can never be served.
            QueueFullError: when too many wait.
        """
        if max(request.prompt_ids) >= self.backend.num_vocab or min(request.prompt_ids) < 0:
            raise RequestError(f"token ids must be 0 to {self.backend.num_vocab - 1}", "prompt")
        shape = self._drafter.shape_for(request.speculation)
        self.scheduler.enqueue(Waiting(request, shape, time.perf_counter()))

    def cancel(self, request_id: str) -> RequestStats | None:
        """End a request at once; what it cost, or None if it was not running."""
        self.scheduler.drop_waiting(request_id)
        for sequence in self.scheduler.running:
            if sequence.request.id == request_id:
                self._end(sequence, keep=True)
                return sequence.stats()
        return None

    def step(self) -> list[StepResult]:
        """One forward pass; what it gave to each request that took part.

        A failure of the model fails the requests of that batch, not the engine.
        """
        began = time.perf_counter()
        self.times = StepTimes()
        self.scheduler.admit(self._start)
        plan = self.scheduler.plan()
        results = self._prefill(plan.prompts)
        decoding = [s for s in plan.decoding if s in self.scheduler.running]
        if decoding:
            results += self._decode(decoding)
        self.times.total = time.perf_counter() - began
        return results

    def fail_all(self, error: Exception) -> list[StepResult]:
        """Fail every request and start over with an empty cache: the last resort."""
        ids = [s.request.id for s in self.scheduler.running]
        ids += [w.request.id for w in self.scheduler.waiting]
        for sequence in self.scheduler.running:
            sequence.sampler.close()
        self._reset()
        return [StepResult(i, finish=FinishReason.ERROR, error=error) for i in ids]

    # -- the parts of a step ----------------------------------------------------------------------

    def _start(self, waiting: Waiting) -> Sequence:
        request, now = waiting.request, time.perf_counter()
        sequence_id, cells = self.pool.acquire(request.prompt_ids, request.reuse_prefix)
        sequence = Sequence(
            request=request,
            sampler=self.backend.make_sampler(request.sampling, request.prompt_ids),
            id=sequence_id,
            shape=waiting.shape,
            admitted_at=now,
            queue_time=now - waiting.arrived_at,
            tokens=list(request.prompt_ids),
            cells=cells,
            cached_tokens=len(cells),
        )
        self.pool.start(sequence)
        return sequence

    def _prefill(self, prompts: list[tuple[Sequence, int]]) -> list[StepResult]:
        rows = [row for s, count in prompts for row in self.pool.lay_out_prompt(s, count)]
        if not rows:
            return []
        try:
            began = time.perf_counter()
            self.backend.prefill(rows)
            self.times.model += time.perf_counter() - began
        except GorgonError as error:
            return [self._fail(sequence, error) for sequence, _ in prompts]
        return []

    def _decode(self, sequences: list[Sequence]) -> list[StepResult]:
        drafts = self._draft(sequences)
        rows, placements = self.pool.lay_out(drafts)
        try:
            began = time.perf_counter()
            output = self.backend.decode(rows)
            self.times.model += time.perf_counter() - began
        except GorgonError as error:
            self.pool.undo(placements)
            return [self._fail(sequence, error) for sequence in sequences]
        accepted = [self._accept(placement, output) for placement in placements]
        self.pool.commit([(p, a.path) for p, a in zip(placements, accepted, strict=True)])
        results = [self._update(p, a) for p, a in zip(placements, accepted, strict=True)]
        self._guess(placements, accepted, output)
        return results

    def _draft(self, sequences: list[Sequence]) -> list[tuple[Sequence, DraftTree]]:
        """A tree for everyone, within the rows and sequence ids that there are."""
        spare_rows = self.backend.max_rows - len(sequences)
        spare_ids = self.pool.num_free_ids
        drafts = []
        for sequence in sequences:
            branches = 1 + len(sequence.sides) + spare_ids
            tree = self._drafter.propose(sequence, 1 + spare_rows, branches)
            spare_rows -= len(tree) - 1
            spare_ids -= max(0, tree.shape.num_branches - 1 - len(sequence.sides))
            drafts.append((sequence, tree))
        return drafts

    def _accept(self, placement: Placement, output: Output) -> Accepted:
        sequence, tree, first = placement.sequence, placement.tree, placement.first_row
        request, sampler = sequence.request, sequence.sampler

        def draw(node: int) -> int:
            return sampler.draw(output, first + node)

        def is_last(token: int, count: int) -> bool:
            return count >= sequence.num_remaining or self._is_end(request, token)

        if request.speculation.acceptance == "lossless" or len(tree) == 1:
            return accept_lossless(tree, draw, is_last)
        temperature = request.sampling.temperature or 1.0
        return accept_typical(
            tree,
            lambda node: log_softmax(output.logits[first + node], temperature),
            draw,
            sampler.observe,
            is_last,
            epsilon=request.speculation.epsilon,
            alpha=request.speculation.alpha,
        )

    def _update(self, placement: Placement, accepted: Accepted) -> StepResult:
        sequence = placement.sequence
        self._time(sequence)
        sequence.count(placement.tree, accepted)
        sequence.max_batch = max(sequence.max_batch, len(self.scheduler.running))
        sequence.tokens += accepted.tokens
        depths = (*range(1, len(accepted.path)), 0)
        finish = self._finish_reason(sequence)
        stats = sequence.stats() if finish else None
        if finish:
            self._end(sequence, keep=True)
        return StepResult(sequence.request.id, accepted.tokens, depths, finish, stats)

    def _guess(self, placements: Seq[Placement], accepted: Seq[Accepted], output: Output) -> None:
        """Run the heads, on the last kept rows of every request that will draft.

        Failing heads cost drafts, not answers: the results of this step are already final.
        """
        wanting = [
            placement.sequence
            for placement, kept in zip(placements, accepted, strict=True)
            if self._keep_hidden(placement, kept, output)
        ]
        if not wanting:
            return
        began = time.perf_counter()
        try:
            self._drafter.guess(wanting)
        except GorgonError as error:
            logger.warning("the heads failed, so the next step drafts nothing: %s", error)
            for sequence in wanting:
                sequence.drafted = None
            return
        self.times.heads += time.perf_counter() - began

    def _keep_hidden(self, placement: Placement, kept: Accepted, output: Output) -> bool:
        """Note the states on the accepted path; whether the request will draft from them."""
        sequence, window = placement.sequence, self.backend.window
        if len(sequence.shape) == 1 or sequence not in self.scheduler.running:
            return False
        rows = [placement.first_row + node for node in reversed(kept.path[-1 - window :])]
        sequence.push_hidden(output.hidden[rows], window)
        return sequence.num_remaining > 1

    # -- the ends of a request --------------------------------------------------------------------

    def _is_end(self, request: Request, token: int) -> bool:
        return token in self.backend.eog_ids and not request.ignore_eos

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        if self._is_end(sequence.request, sequence.tokens[-1]):
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.num_remaining <= 0 else None

    def _time(self, sequence: Sequence) -> None:
        elapsed = time.perf_counter() - sequence.admitted_at
        if sequence.steps == 0:
            sequence.prefill_time = elapsed
        sequence.decode_time = elapsed - sequence.prefill_time

    def _end(self, sequence: Sequence, keep: bool) -> None:
        self.scheduler.finish(sequence)
        self.pool.release(sequence, keep)
        sequence.sampler.close()

    def _fail(self, sequence: Sequence, error: Exception) -> StepResult:
        stats = sequence.stats()
        self._end(sequence, keep=False)
        return StepResult(sequence.request.id, finish=FinishReason.ERROR, stats=stats, error=error)

    def check_integrity(self) -> None:
        """Assert that no cell and no sequence id is lost; see ``SequencePool``."""
        self.pool.check_integrity()
