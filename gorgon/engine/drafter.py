"""Which token tree every request tries next: the drafts that are worth their place in the step.

Asks the sources (heads, lookup), corrects what they state by what came of it so far, and lets the
budget decide over the whole batch. A request that asks for a fixed tree gets just that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

from gorgon.backend import Backend
from gorgon.engine.draft_step import DraftStep
from gorgon.engine.fixed_trees import fill
from gorgon.engine.heads_calls import HeadsCalls
from gorgon.engine.heads_source import HeadsSource
from gorgon.engine.lookup_source import LookupSource
from gorgon.engine.sequence import Sequence
from gorgon.engine.states import States
from gorgon.errors import RequestError
from gorgon.request import SpeculationParams
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.cost import CallCost, OutsideCost, StepCost
from gorgon.speculation.gate import Gate
from gorgon.speculation.habit import Habit
from gorgon.speculation.hindsight import Hindsight
from gorgon.speculation.survival import Inheritance
from gorgon.speculation.tree import (
    MAX_NODES,
    ROOT_SHAPE,
    DraftTree,
    TreeShape,
    from_paths,
    root_only,
)

_LEAST_SPELL = 16  # steps with drafts in a row before some go without,
_CHECKS = 2  # as many: the first may pay for the change
_KEPT_SPELL, _KEPT_CHECKS = 128, 4  # the same where changes are dear
_SURE = 2.0  # standard deviations by which drafts must gain to need no such steps


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step has room for beside one row, one id and one cell for each request's root."""

    rows: int
    ids: int
    cells: int

    @property
    def drafts(self) -> int:
        """Drafts that fit whatever their trees look like: a draft adds one branch at most."""
        return max(0, min(self.rows, self.ids, self.cells))


class Drafter:
    """Builds the trees of a step and learns from what became of them.

    Args:
        backend: the heads, if there are any.
        states: what they read.
        cost: what a step takes by its number of tokens.
        habit: sizes that are kept, where changes of size are dear; else every step chooses.
        clock: seconds, for timing the heads.
    """

    def __init__(
        self,
        backend: Backend,
        states: States,
        cost: StepCost,
        habit: Habit | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend, self.cost, self._clock = backend, cost, clock
        self._habit, self._hindsight, self._outside = habit, Hindsight(), OutsideCost()
        self._checked = (_LEAST_SPELL, _CHECKS) if habit is None else (_KEPT_SPELL, _KEPT_CHECKS)
        self._gate, self._heads_gate = Gate(), Gate()  # for all sources, and for the heads
        self._reach = 16  # drafts of a step that are thought about; more once many are taken
        self._spell = 0  # steps in a row with drafts
        self._checks = 0  # steps without drafts to come, to see what these take
        self._look = 0.0  # seconds that looking took in this step, besides the heads
        self._kept = 0  # drafts of this step, where their number is kept
        self._expected: tuple[float, float] | None = None  # tokens, seconds of this step's drafts
        self._inheritance = Inheritance()
        typical = float(cost.seconds(0.0)[1])
        self.heads = HeadsCalls(backend, states, typical, clock)
        self._look_cost = CallCost(0.02 * typical, 0.01 * typical)  # besides the heads
        self._from_heads, self._from_lookup = HeadsSource(backend, self.heads), LookupSource()

    # -- requests come and go ---------------------------------------------------------------------

    def fixed_shape(self, speculation: SpeculationParams) -> TreeShape | None:
        """The tree that a request insists on; None when the drafter may choose.

        Raises:
            RequestError: when its tree needs heads or guesses that there are not, or its mode none.
        """
        if speculation.mode == "normal":
            if speculation.tree is not None:
                raise RequestError("mode 'normal' drafts nothing; leave the tree out", field="tree")
            return ROOT_SHAPE
        if speculation.tree is None:
            if speculation.mode == "fixed":
                raise RequestError("mode 'fixed' needs a tree", field="tree")
            return None
        shape = from_paths(speculation.tree)
        if shape.max_depth > self._backend.num_heads:
            raise RequestError(
                f"tree is {shape.max_depth} deep, the heads look "
                f"{self._backend.num_heads} tokens ahead",
                field="tree",
            )
        if len(shape) > 1 and shape.max_rank >= self._backend.max_guesses:
            raise RequestError(
                f"tree takes rank {shape.max_rank}, "
                f"the heads give 0 to {self._backend.max_guesses - 1}",
                field="tree",
            )
        return shape

    def start(self, sequence: Sequence) -> None:
        """Give a new request what earlier ones of its kind have learnt."""
        kind = _kind(sequence)
        sequence.heads_correction = self._inheritance.start("heads " + kind)
        sequence.lookup_correction = self._inheritance.start("lookup " + kind)
        self._gate.hurry()

    def end(self, sequence: Sequence) -> None:
        """Learn from a request that is over."""
        if sequence.steps and sequence.shape is None:
            kind = _kind(sequence)
            self._inheritance.end("heads " + kind, sequence.heads_correction)
            self._inheritance.end("lookup " + kind, sequence.lookup_correction)

    # -- the step ---------------------------------------------------------------------------------

    def propose(self, sequences: Seq[Sequence], limits: Limits, context: float) -> list[DraftTree]:
        """A tree for each request.

        Args:
            sequences: who decodes in this step.
            limits: room beside the roots.
            context: cells that attention reads for each token, for the cost of the step.
        """
        self.heads.seconds, self._look, self._expected = 0.0, 0.0, None
        if self._rests(sequences):
            return [root_only(sequence.tokens[-1]) for sequence in sequences]
        roots = [sequence.tokens[-1] for sequence in sequences]
        rooms = [sequence.num_remaining - 1 for sequence in sequences]
        candidates = Candidates(roots, rooms)
        free = [i for i, s in enumerate(sequences) if s.shape is None and rooms[i] > 0]
        if len(free) < len(sequences):
            self._add_fixed(candidates, sequences, limits.drafts)
        if not free:
            return candidates.trees(range(len(roots), len(candidates)))
        num_sure = len(candidates)
        choose = self._choose if self._habit is None else self._keep_size
        step = choose(candidates, sequences, free, context, limits.drafts)
        looked = step.choice.num_drafts or (step.spent and self._habit is None)
        if num_sure == len(free) and looked:
            self._expected = step.expected()
        return step.trees()

    def _rests(self, sequences: Seq[Sequence]) -> bool:
        """Whether this step does not even look for drafts, since looking has not paid lately."""
        free = []
        for sequence in sequences:
            if sequence.shape is None:
                free.append(sequence)
            elif len(sequence.shape) > 1:
                return False
        if not free:
            return True
        if self._checks or self._doubts(len(sequences)):
            self._checks = (self._checks or self._checked[1]) - 1
            return True
        if self._habit is not None:
            return self._habit.rests(len(sequences))
        if self._gate.is_open(len(sequences)):
            return False
        woken = self._from_lookup.repeats(free)
        if woken:
            self._gate.wake(len(sequences))
        return not woken

    def _doubts(self, num_requests: int) -> bool:
        """Whether to go without drafts for some steps, since what these take may have changed."""
        gate = self._gate if self._habit is None else self._habit
        gain = gate.gain(num_requests)
        return gain > 0.0 and self._spell >= self._checked[0] and gain < _SURE * self.cost.doubt()

    def _choose(
        self,
        candidates: Candidates,
        sequences: Seq[Sequence],
        free: list[int],
        context: float,
        max_drafts: int,
    ) -> DraftStep:
        """The drafts that are best for this step, of all that the sources know."""
        began, num_requests = self._clock(), len(sequences)
        most = num_requests + min(max_drafts, candidates.num_drafts + self._reach)
        curve = self.cost.next_curve(context, most, num_requests)
        trust = self._hindsight.factor(num_requests)
        step = DraftStep(candidates, sequences, free, curve, trust=trust)
        self._from_lookup.add(step)
        if step.chains:
            step.choose()
        best = without = step.gain()
        # A look of a gate that is shut is at everything.
        asks = self._gate.is_shut(num_requests) or self._heads_gate.is_open(num_requests)
        if asks and self._add_heads(step):
            best = max(step.gain(), without)
            self._heads_gate.learn(num_requests, step.gain() - without)
        if step.choice.num_drafts > self._reach // 2:
            self._reach = min(2 * self._reach, MAX_NODES - 1)
        self._look = self._clock() - began - self.heads.seconds
        self._look_cost.observe(num_requests, self._look)
        self._gate.learn(num_requests, best - step.share(self._look_cost.at(num_requests)))
        return step

    def _keep_size(
        self,
        candidates: Candidates,
        sequences: Seq[Sequence],
        free: list[int],
        context: float,
        max_drafts: int,
    ) -> DraftStep:
        """As many drafts as the habit is to carry."""
        assert self._habit is not None
        began = self._clock()
        most = len(sequences) + min(max_drafts, candidates.num_drafts + MAX_NODES - 1)
        num_sure, curve = len(candidates), self.cost.curve(context, most, len(sequences))
        for n in range(num_sure + 1, len(curve)):
            curve[n] += self._outside.drafting(n - len(sequences), len(sequences))
        trust = partial(self._hindsight.factor, len(sequences))
        plan = self._habit.plan(num_sure, self.cost.last_size, curve, trust)
        step = DraftStep(candidates, sequences, free, curve, plan)
        if plan.width:
            self._from_lookup.add(step)
            if not self._add_heads(step):
                step.choose()
            self._habit.learn(num_sure, plan, step.survivals, step.spent)
        if not plan.num_drafts:  # else looking belongs to what so many drafts cost
            self._look = self._clock() - began - self.heads.seconds
        self._kept = plan.num_drafts
        return step

    def _add_fixed(self, candidates: Candidates, sequences: Seq[Sequence], max_drafts: int) -> None:
        """Fill the trees that requests insist on."""
        trees = [
            (root, sequence.shape)
            for root, sequence in enumerate(sequences)
            if sequence.shape is not None
            and len(sequence.shape) > 1
            and _can_use_heads(sequence)
            and sequence.num_remaining > 1
        ]
        if not trees:
            return
        guesses = self.heads.propose([sequences[root] for root, _ in trees])
        if guesses is not None:
            fill(candidates, trees, guesses, partial(self.heads.deepen, sequences), max_drafts)

    def _add_heads(self, step: DraftStep) -> bool:
        """Add what the heads guess, as deep as it pays; whether they could be asked."""
        roots = [i for i in step.free if _can_use_heads(step.sequences[i])]
        return bool(roots) and self._from_heads.add(step, roots)

    def reads_states(self, sequences: Seq[Sequence]) -> bool:
        """Whether the heads may soon be asked, and so want the states of the steps from now on."""
        steps, num_requests = 2 + self._backend.window, len(sequences)
        if any(s.shape is not None and len(s.shape) > 1 for s in sequences):
            return True
        if self._habit is not None:
            return self._habit.drafts_within(num_requests, steps)
        gate = self._gate if self._gate.is_shut(num_requests) else self._heads_gate
        return gate.is_open_within(num_requests, steps)

    def begin(self, sequences: Seq[Sequence]) -> None:
        """Let the device look at what the next step will ask about ``sequences``, if it will.

        It then does so while this processor ends the step.
        """
        if not self._backend.begins or self._habit is None or self._checks:
            return
        if self._habit.drafts_within(len(sequences), 1):
            asked = [s for s in sequences if s.shape is None and s.num_remaining > 1]
            asked = [s for s in asked if _can_use_heads(s)]
            if asked:
                self.heads.begin(asked)

    # -- feedback ---------------------------------------------------------------------------------

    def observe(
        self,
        num_requests: int,
        num_rows: int,
        context: float,
        tokens: int,
        seconds: float,
        model: float,
    ) -> None:
        """Learn from a step as a whole.

        Args:
            num_requests: who took part.
            num_rows: tokens computed.
            context: as ``propose`` was told.
            tokens: what came of it.
            seconds: what it took, the heads included.
            model: of these in the model.
        """
        self._spell = self._spell + 1 if num_rows > num_requests else 0
        seconds -= self._look  # spent whatever comes of it; the gate counts it
        passes = seconds - self.heads.seconds
        if self._habit is not None:
            num_drafts = num_rows - num_requests
            passes -= self._outside.drafting(num_drafts, num_requests)
            outside = seconds - self.heads.seconds - model
            self._outside.observe(num_drafts, num_requests, outside)
        self.cost.observe(num_rows, context, passes, num_requests)
        if self._expected is None:
            self._hindsight.forget(num_requests)
        else:
            self._hindsight.learn(num_requests, self._expected, (tokens, seconds), self._kept)

    def learn(self, sequence: Sequence, tree: DraftTree, accepted: Accepted) -> None:
        """Compare what the sources stated with what came."""
        if sequence.shape is None:
            self._from_lookup.learn(sequence, accepted.tokens[0])
            self._from_heads.learn(sequence, tree, accepted)


def _can_use_heads(sequence: Sequence) -> bool:
    return sequence.has_states and sequence.uses_heads


def _kind(sequence: Sequence) -> str:
    return "sampled" if sequence.request.sampling.temperature > 0 else "greedy"
