"""The engine: one step is one forward pass for all running requests.

Single-threaded and passive: ``submit`` and ``cancel`` note things, ``step`` does them. Knows token
ids; text, HTTP and threads are elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from gorgon.backend import Backend, BatchRow, Output
from gorgon.config import EngineSettings
from gorgon.engine.drafter import Drafter, Limits
from gorgon.engine.logprobs import token_logprob
from gorgon.engine.pool import Placement, SequencePool
from gorgon.engine.scheduler import Scheduler, Waiting
from gorgon.engine.sequence import Sequence
from gorgon.engine.shared_prompts import SharedPrompts
from gorgon.engine.states import States
from gorgon.engine.trace import trace_tree
from gorgon.errors import GorgonError, QueueFullError, RequestError
from gorgon.request import FinishReason, Request, RequestStats, StepResult, TokenLogprob
from gorgon.speculation.acceptance import (
    Accepted,
    accept_lossless,
    accept_typical,
    log_softmax,
)
from gorgon.speculation.cost import StepCost
from gorgon.speculation.habit import Habit
from gorgon.speculation.tree import MAX_NODES

logger = logging.getLogger("gorgon.engine")

CACHED_CELLS, FEW_CACHED_CELLS = 2048, 512  # see EngineSettings.cached_cells
TRASH_CELLS = 512
MANY_IDS = 64  # with fewer free ones, ids that branches had before go back first


@dataclass(slots=True)
class StepTimes:
    """Seconds that the last step took, and of these in the model and in the heads.

    ``prefill`` is the part of ``model`` that went into prompt chunks.
    """

    total: float = 0.0
    model: float = 0.0
    heads: float = 0.0
    prefill: float = 0.0

    @property
    def overhead(self) -> float:
        """Seconds outside the model and the heads."""
        return self.total - self.model - self.heads


class Engine:
    """Requests in, step results out.

    Args:
        backend: the model, with an empty cache; used by this engine alone.
        settings: limits.
        cost: what a step takes by its number of tokens, measured on this machine.
    """

    def __init__(self, backend: Backend, settings: EngineSettings, cost: StepCost) -> None:
        self.backend, self.settings = backend, settings
        sizes = settings.batch_sizes or (cost.times.sizes if backend.captures_graphs else ())
        self.states, habit = States.of(backend), Habit(cost.change, sizes) if sizes else None
        self.drafter = Drafter(backend, self.states, cost, habit)
        self.times = StepTimes()
        self._reset()

    def _reset(self) -> None:
        self.backend.clear()
        trash_cells = self.settings.trash_cells
        if self.backend.orders_cells:
            trash_cells = 0
        elif trash_cells is None:
            # A GPU's kernels depend on the batch's size, and round otherwise whatever the order.
            trash_cells = 0 if self.backend.captures_graphs else TRASH_CELLS
        cached_cells = self.settings.cached_cells
        if cached_cells is None:
            cached_cells = CACHED_CELLS if self.backend.skips_hidden_cells else FEW_CACHED_CELLS
        self.pool = SequencePool(self.backend, cached_cells, trash_cells)
        self.scheduler = Scheduler(self.backend, self.settings)
        self.prompts = SharedPrompts(self.scheduler.running, self.pool)

    @property
    def max_length(self) -> int:
        """The most tokens that any request can have, prompt and answer, beside its trees."""
        return min(self.backend.max_position, self.backend.num_cells - MAX_NODES)

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
        self.backend.check_sampling(request.sampling)
        shape = self.drafter.fixed_shape(request.speculation)
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
        results = self._expire(began)
        self.scheduler.admit(self._start)
        self.prompts.take_over()
        plan = self.scheduler.plan()
        results += self._prefill(plan.prompts)
        decoding = plan.decoding
        if results:  # the model may have failed on prompts
            decoding = [s for s in decoding if s in self.scheduler.running]
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

    def _expire(self, now: float) -> list[StepResult]:
        """Refuse those who have waited too long."""
        limit = self.settings.max_queue_time
        late = self.scheduler.drop_older(now - limit)
        if not late:
            return []
        error = QueueFullError(f"waited {limit:g} s without being served; try again later", limit)
        return [
            StepResult(
                waiting.request.id,
                finish=FinishReason.ERROR,
                stats=RequestStats(len(waiting.request.prompt_ids), queue_time=limit),
                error=error,
            )
            for waiting in late
        ]

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
        self.prompts.follow(sequence)
        self.drafter.start(sequence)
        return sequence

    def _prefill(self, prompts: list[tuple[Sequence, int]]) -> list[StepResult]:
        rows = [row for s, count in prompts for row in self.pool.lay_out_prompt(s, count)]
        if not rows:
            return []
        try:
            self.states.settle()
            began = time.perf_counter()
            self.backend.prefill(rows)
            self.times.model = self.times.prefill = time.perf_counter() - began
            self.drafter.cost.interrupt()
        except GorgonError as error:
            return [self._fail(sequence, error) for sequence, _ in prompts]
        return []

    def _decode(self, sequences: list[Sequence]) -> list[StepResult]:
        began = time.perf_counter()
        context = self._context(sequences)
        trees = self.drafter.propose(sequences, self._limits(sequences), context)
        rows, placements = self.pool.lay_out(zip(sequences, trees, strict=True))
        try:
            output = self._forward(rows)
        except GorgonError as error:
            self.pool.undo(placements)
            return [self._fail(sequence, error) for sequence in sequences]
        accepted = [self._accept(placement, output) for placement in placements]
        for placement, kept in zip(placements, accepted, strict=True):
            placement.sequence.tokens += kept.tokens
        self._keep_states(placements, accepted, output)
        self.pool.commit([(p, a.path) for p, a in zip(placements, accepted, strict=True)])
        for placement, kept in zip(placements, accepted, strict=True):
            self.drafter.learn(placement.sequence, placement.tree, kept)
        self.times.heads = self.drafter.heads.seconds
        tokens, seconds = sum([len(a.tokens) for a in accepted]), time.perf_counter() - began
        model = self.times.model - self.times.prefill
        self.drafter.observe(len(sequences), len(rows), context, tokens, seconds, model)
        return [self._update(p, a, output) for p, a in zip(placements, accepted, strict=True)]

    def _forward(self, rows: list[BatchRow]) -> Output:
        self.states.settle()
        began = time.perf_counter()
        output = self.backend.decode(rows)
        self.times.model += time.perf_counter() - began
        return output

    def _limits(self, sequences: list[Sequence]) -> Limits:
        """Room for drafts within the rows, sequence ids and cells that there are."""
        if self.pool.num_free_ids < MANY_IDS:
            self.pool.reclaim_sides()
        return Limits(
            rows=self.backend.max_rows - len(sequences),
            ids=self.pool.num_free_ids,
            cells=self.scheduler.num_draft_cells,
        )

    def _context(self, sequences: list[Sequence]) -> float:
        """Cells that attention reads for each token: those it sees, or all that are used."""
        if self.backend.skips_hidden_cells:
            return sum(sequence.num_computed for sequence in sequences) / len(sequences)
        return self.pool.cells.num_used

    def _accept(self, placement: Placement, output: Output) -> Accepted:
        sequence, tree, first = placement.sequence, placement.tree, placement.first_row
        request, sampler = sequence.request, sequence.sampler
        if len(tree.tokens) == 1:
            return Accepted((0,), (sampler.draw(output, first),))

        def draw(node: int) -> int:
            return sampler.draw(output, first + node)

        def is_last(token: int, count: int) -> bool:
            return count >= sequence.num_remaining or self._is_end(request, token)

        if request.speculation.acceptance == "lossless":
            return accept_lossless(tree, draw, is_last)
        temperature = 1.0 if request.sampling.is_greedy else request.sampling.temperature
        return accept_typical(
            tree,
            lambda node: log_softmax(output.logits[first + node], temperature),
            draw,
            sampler.observe,
            is_last,
            epsilon=request.speculation.epsilon,
            alpha=request.speculation.alpha,
        )

    def _update(self, placement: Placement, accepted: Accepted, output: Output) -> StepResult:
        sequence = placement.sequence
        if sequence.sampler.failure is not None:
            return self._fail(sequence, sequence.sampler.failure)
        self._time(sequence)
        sequence.count(placement.tree, accepted)
        sequence.max_batch = max(sequence.max_batch, len(self.scheduler.running))
        depths = (*range(1, len(accepted.path)), 0)
        finish = self._finish_reason(sequence)
        stats = sequence.stats() if finish else None
        if finish:
            self._end(sequence, keep=True)
        request = sequence.request
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.num_logprobs is not None:
            logprobs = _logprobs(request.num_logprobs, placement, accepted, output)
        return StepResult(
            request.id,
            accepted.tokens,
            depths,
            finish,
            stats,
            logprobs=logprobs,
            tree=trace_tree(placement.tree, accepted.path) if request.want_tree else None,
        )

    def _keep_states(
        self, placements: Seq[Placement], accepted: Seq[Accepted], output: Output
    ) -> None:
        """Keep what the heads will read, and let them start on it."""
        if not self.backend.num_heads:
            return
        sequences = [placement.sequence for placement in placements]
        if self.drafter.reads_states(sequences):
            self._note_states(placements, accepted, output)
            self.drafter.begin([s for s in sequences if self._finish_reason(s) is None])
        else:
            for sequence in sequences:
                sequence.has_states = False

    def _note_states(
        self, placements: Seq[Placement], accepted: Seq[Accepted], output: Output
    ) -> None:
        most = 1 + self.backend.window
        latest = [
            (placement.sequence, [placement.first_row + n for n in kept.path[: -1 - most : -1]])
            for placement, kept in zip(placements, accepted, strict=True)
            if placement.sequence.uses_heads
        ]
        self.states.note(output.hidden, latest)

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
        self.prompts.leave(sequence, keep)
        self.pool.release(sequence, keep)
        self.drafter.end(sequence)
        sequence.sampler.close()

    def _fail(self, sequence: Sequence, error: Exception) -> StepResult:
        stats = sequence.stats()
        self._end(sequence, keep=False)
        return StepResult(sequence.request.id, finish=FinishReason.ERROR, stats=stats, error=error)

    def check_integrity(self) -> None:
        """Assert that no cell and no sequence id is lost; see ``SequencePool``."""
        self.pool.check_integrity()


def _logprobs(
    count: int, placement: Placement, accepted: Accepted, output: Output
) -> tuple[TokenLogprob, ...]:
    """Token i came from the logits of the i-th kept node, drawn or drafted."""
    rows = [placement.first_row + node for node in accepted.path]
    return tuple(
        token_logprob(output.logits[row], token, count)
        for row, token in zip(rows, accepted.tokens, strict=True)
    )
