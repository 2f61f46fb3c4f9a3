"""Which token tree every request tries next: the drafts that are worth their place in the step.

Asks the sources (heads, lookup), corrects what they state by what came of it so far, and lets the
budget decide over the whole batch. A request that asks for a fixed tree gets just that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gorgon.backend import Backend, DraftState, Guesses
from gorgon.engine.draft_step import DraftStep
from gorgon.engine.fixed_trees import fill
from gorgon.engine.sequence import Sequence
from gorgon.errors import GorgonError, RequestError
from gorgon.request import SpeculationParams
from gorgon.speculation import budget
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.candidates import Candidates, most_below
from gorgon.speculation.cost import CallCost, StepCost
from gorgon.speculation.gate import Gate
from gorgon.speculation.habit import Habit
from gorgon.speculation.hindsight import Hindsight
from gorgon.speculation.lookup import LookupSurvival, Match
from gorgon.speculation.survival import Inheritance, apply_all
from gorgon.speculation.tree import MAX_NODES, ROOT_SHAPE, DraftTree, Source, TreeShape, from_paths

logger = logging.getLogger("gorgon.engine")

_Found = TypeVar("_Found")

_TESTED_GUESSES = 3  # first guesses of the heads that are tested by the next token, drafted or not
_TOP_RATE = 0.02  # of one step in the mean probability of best guesses by depth


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
        cost: what a step takes by its number of tokens.
        habit: sizes that are kept, where changes of size are dear; else every step chooses.
        clock: seconds, for timing the heads.
    """

    def __init__(
        self,
        backend: Backend,
        cost: StepCost,
        habit: Habit | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend, self.cost, self._clock = backend, cost, clock
        self._gate, self._habit, self._hindsight = Gate(), habit, Hindsight()
        self._expected: tuple[float, float] | None = None  # tokens, seconds of this step's drafts
        self._lookup = LookupSurvival()
        self._inheritance = Inheritance()
        typical = float(cost.seconds(0.0)[1])
        self.propose_cost = CallCost(0.05 * typical, 0.02 * typical)
        self.deepen_cost = CallCost(0.03 * typical, 0.01 * typical)
        self._top = [0.5] * (backend.num_heads + 2)
        self.heads_time = 0.0  # seconds in the heads in the last ``propose``

    # -- requests come and go ---------------------------------------------------------------------

    def fixed_shape(self, speculation: SpeculationParams) -> TreeShape | None:
        """The tree that a request insists on; None when the drafter may choose.

        Raises:
            RequestError: when its tree needs heads or guesses that there are not.
        """
        if speculation.mode == "normal":
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
        self.heads_time, self._expected = 0.0, None
        roots = [sequence.tokens[-1] for sequence in sequences]
        candidates = Candidates(roots, [sequence.num_remaining - 1 for sequence in sequences])
        self._add_fixed(candidates, sequences, limits.drafts)
        free = [i for i, s in enumerate(sequences) if s.shape is None and s.num_remaining > 1]
        if not free:
            return candidates.trees(range(len(roots), len(candidates)))
        num_sure = len(candidates)
        most = len(roots) + min(limits.drafts, (MAX_NODES - 1) * len(free))
        trust = self._hindsight.factor(len(roots))
        if self._habit is None:
            curve = self.cost.next_curve(context, most)
            step = DraftStep(candidates, sequences, free, curve, trust=trust)
            self._ask_sources(step)
        else:
            curve = self.cost.curve(context, most)
            plan = self._habit.plan(num_sure, self.cost.last_size, curve, trust)
            step = DraftStep(candidates, sequences, free, curve, plan)
            if plan.width:
                self._ask_sources(step)
                self._habit.learn(num_sure, plan, step.survivals, step.spent)
        if num_sure == len(free) and (step.choice.num_drafts or step.spent):
            self._expected = step.expected()
        return step.trees()

    def _ask_sources(self, step: DraftStep) -> None:
        self._add_lookups(step)
        self._add_heads(step)

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
        guesses = self._ask_heads([sequences[root] for root, _ in trees])
        if guesses is not None:
            fill(candidates, trees, guesses, self._go_deeper, max_drafts)

    # -- lookup -----------------------------------------------------------------------------------

    def _add_lookups(self, step: DraftStep) -> None:
        floor = step.floor()
        for root in step.free:
            sequence = step.sequences[root]
            match = sequence.match = sequence.occurrences.match(sequence.tokens)
            if match is not None and self._stated(sequence, match) >= floor:
                rates, places = self._lookup.classes(match)
                rates = sequence.lookup_correction.apply_each(rates, 1)
                probs = [rates[place] for place in places]
                step.candidates.add_chain(root, match.tokens, probs, floor, Source.LOOKUP)
        if step.candidates.num_drafts:
            step.choose()

    def _stated(self, sequence: Sequence, match: Match) -> float:
        """How probable the first token after ``match`` is."""
        return sequence.lookup_correction.apply(self._lookup.at(match.length), 1)

    # -- heads ------------------------------------------------------------------------------------

    def _add_heads(self, step: DraftStep) -> None:
        """Add what the heads guess, as deep as it pays, if lately it paid to ask them."""
        roots = [i for i in step.free if _can_use_heads(step.sequences[i])]
        num_requests, without = len(step.sequences), step.choice
        if not self._backend.num_heads or not roots:
            return
        if self._habit is None and not self._gate.is_open(num_requests):
            return
        asked = self._add_search if self._backend.searches else self._add_guesses
        if asked(step, roots) and self._habit is None:
            self._gate.learn(num_requests, math.log(step.choice.rate / without.rate))

    def _add_search(self, step: DraftStep, roots: list[int]) -> bool:
        """Add all that one call finds; whether it did."""
        state = draft_state([step.sequences[root] for root in roots], self._backend.window)
        levels = self._timed(len(roots), self.propose_cost, lambda: self._backend.search(state))
        if levels is None:
            return False
        spent = self.propose_cost.at(len(roots))
        nodes: dict[tuple[int, int], int] = {}  # by their row of the level above and token
        for depth, level in enumerate(levels, 1):
            keys = list(zip(level.parents.tolist(), level.tokens.tolist(), strict=True))
            found = roots if depth == 1 else [nodes.get(key, -1) for key in keys]
            rows = [row for row, node in enumerate(found) if node >= 0]
            if not rows:  # nothing that the heads went on from was worth a place
                break
            parents = [found[row] for row in rows]
            added = self._add_level(step, parents, level.guesses.at(rows), depth)
            step.choose(spent)
            candidates = step.candidates
            nodes = {
                (rows[row], candidates.tokens[node]): node
                for node, row in added.items()
                if candidates.room_below(node) > 0
            }
        return True

    def _add_guesses(self, step: DraftStep, roots: list[int]) -> bool:
        """Add what the heads guess, as deep as it pays; whether they answered."""
        guesses = self._ask_heads([step.sequences[root] for root in roots])
        if guesses is None:
            return False
        spent = self.propose_cost.at(len(roots))
        add = self._add_independent if guesses.states is None else self._add_levels
        add(step, roots, guesses, spent)
        return True

    def _add_independent(
        self, step: DraftStep, roots: list[int], guesses: Guesses, spent: float
    ) -> None:
        """Independent heads: one call for all depths, whose guesses hold below every node."""
        num_depths = guesses.probs.shape[1]
        corrections = [step.sequences[root].heads_correction for root in roots]
        shifts = [[c.shift(1 + level) for level in range(num_depths)] for c in corrections]
        tokens, probs = guesses.tokens.tolist(), apply_all(guesses.probs, shifts).tolist()
        for row, root in enumerate(roots):
            _note_guesses(step.sequences[root], tokens[row][0], probs[row][0])
        parents, rows = roots, list(range(len(roots)))
        counts = [len(ranked[0]) for ranked in tokens]
        for level in range(num_depths):
            guessed = [tokens[row][level][:n] for row, n in zip(rows, counts, strict=True)]
            ranked = [probs[row][level][:n] for row, n in zip(rows, counts, strict=True)]
            below = step.add_level(parents, guessed, ranked)
            step.choose(spent)
            by_row = {node: rows[row] for node, row in below.items()}
            deeper = most_below(step.candidates, by_row, step.num_wanted)
            parents, counts = list(deeper), list(deeper.values())
            rows = [by_row[node] for node in parents]

    def _add_levels(
        self, step: DraftStep, roots: list[int], guesses: Guesses, spent: float
    ) -> None:
        """Conditioned heads: one call for each depth, about the nodes worth going on from."""
        parents = roots
        for depth in range(1, self._backend.num_heads + 1):
            rows = self._add_level(step, parents, guesses, depth)
            step.choose(spent)
            parents = self._worth_deepening(step, rows, depth + 1)
            if not parents:
                return
            above = [(rows[node], step.candidates.tokens[node]) for node in parents]
            below = self._go_deeper(guesses, above, depth + 1)
            if below is None:
                return
            spent += self.deepen_cost.at(len(parents))
            guesses = below

    def _add_level(
        self, step: DraftStep, parents: list[int], guesses: Guesses, depth: int
    ) -> dict[int, int]:
        """Add what conditioned heads guess below ``parents``; the new nodes with their rows."""
        tokens = guesses.tokens[:, 0].tolist()
        probs = self._corrected(step, parents, guesses, depth)
        if depth == 1:
            for root, guessed, ranked in zip(parents, tokens, probs, strict=True):
                _note_guesses(step.sequences[root], guessed, ranked)
        return step.add_level(parents, tokens, probs)

    def _corrected(
        self, step: DraftStep, parents: list[int], guesses: Guesses, depth: int
    ) -> list[list[float]]:
        """The guesses' probabilities as each request's experience corrects them."""
        owners = [step.sequences[step.candidates.owner(parent)] for parent in parents]
        probs = [
            owner.heads_correction.apply_each(stated, depth)
            for owner, stated in zip(owners, guesses.probs[:, 0].tolist(), strict=True)
        ]
        best = sum(ranked[0] for ranked in probs) / len(probs)
        self._top[depth] += _TOP_RATE * (best - self._top[depth])
        return probs

    def _worth_deepening(self, step: DraftStep, rows: dict[int, int], depth: int) -> list[int]:
        """The nodes whose best guess at ``depth`` should survive often enough to pay the call."""
        if depth > self._backend.num_heads:
            return []
        nodes = step.candidates.with_room(rows)
        if not nodes:
            return []
        candidates, price, rate = step.candidates, step.price(), step.choice.rate
        survivals, top = candidates.survivals, self._top[depth]
        nodes.sort(key=survivals.__getitem__, reverse=True)
        gains = [survivals[node] * top - price for node in nodes]
        call = self.deepen_cost
        return nodes[: budget.num_worth(gains, rate * call.base, rate * call.per_row)]

    def _ask_heads(self, sequences: list[Sequence]) -> Guesses | None:
        """The heads' first guesses; None when they fail, which costs drafts, not answers."""
        state = draft_state(sequences, self._backend.window)
        return self._timed(len(sequences), self.propose_cost, lambda: self._backend.propose(state))

    def _go_deeper(
        self, guesses: Guesses, above: Seq[tuple[int, int]], depth: int
    ) -> Guesses | None:
        """Guesses at ``depth`` below nodes given by the row of ``guesses`` and their token."""
        assert guesses.states is not None
        states = guesses.states[[row for row, _ in above]]
        tokens = np.array([token for _, token in above], np.int32)
        return self._timed(
            len(above), self.deepen_cost, lambda: self._backend.deepen(states, tokens, depth)
        )

    def _timed(self, rows: int, cost: CallCost, call: Callable[[], _Found]) -> _Found | None:
        began = self._clock()
        try:
            found = call()
        except GorgonError as error:
            logger.warning("the heads failed, so this step drafts without them: %s", error)
            return None
        elapsed = self._clock() - began
        self.heads_time += elapsed
        cost.observe(rows, elapsed)
        return found

    def reads_states(self, sequences: Seq[Sequence]) -> bool:
        """Whether the heads may soon be asked, and so want the states of the steps from now on."""
        steps, num_requests = 2 + self._backend.window, len(sequences)
        if any(s.shape is not None and len(s.shape) > 1 for s in sequences):
            return True
        if self._habit is not None:
            return self._habit.drafts_within(num_requests, steps)
        return self._gate.is_open_within(num_requests, steps)

    # -- feedback ---------------------------------------------------------------------------------

    def observe(
        self, num_requests: int, num_rows: int, context: float, tokens: int, seconds: float
    ) -> None:
        """Learn from a step as a whole.

        Args:
            num_requests: who took part.
            num_rows: tokens computed.
            context: as ``propose`` was told.
            tokens: what came of it.
            seconds: what it took, the heads included.
        """
        self.cost.observe(num_rows, context, seconds - self.heads_time)
        if self._expected is None:
            self._hindsight.forget(num_requests)
        else:
            self._hindsight.learn(num_requests, self._expected, (tokens, seconds))

    def learn(self, sequence: Sequence, tree: DraftTree, accepted: Accepted) -> None:
        """Compare what was stated with what came.

        Every token drawn tests the drafts that hung below the node it was drawn at, and the first
        one also tests what the sources said without being drafted.
        """
        if sequence.shape is not None:
            return
        first = accepted.tokens[0]
        if sequence.match is not None:
            match, right = sequence.match, sequence.match.tokens[0] == first
            sequence.lookup_correction.learn(self._stated(sequence, match), 1, right)
            self._lookup.learn(match.length, right)
            sequence.match = None
        correction = sequence.heads_correction
        # guesses of one token are learnt from together: one at most can be right
        if sequence.guesses is not None:
            tokens, stated = sequence.guesses
            correction.learn(stated, 1, first in tokens)
            sequence.guesses = None
        for node, token in zip(accepted.path[1:], accepted.tokens[1:], strict=True):
            below = [c for c in tree.shape.children[node] if tree.sources[c] is Source.HEADS]
            if below:
                right = token in [tree.tokens[child] for child in below]
                stated = sum([tree.probs[child] for child in below])
                correction.learn(stated, tree.shape.depths[below[0]], right)


def draft_state(sequences: Seq[Sequence], window: int) -> DraftState:
    """What the heads read of ``sequences``, whose last states are known."""
    hidden = np.concatenate([piece for sequence in sequences for piece in sequence.hidden])
    tokens = [sequence.last_tokens(1 + window) for sequence in sequences]
    shape = (len(sequences), 1 + window, hidden.shape[1])
    return DraftState(hidden.reshape(shape), np.array(tokens, np.int32))


def _note_guesses(sequence: Sequence, tokens: list[int], probs: list[float]) -> None:
    """Keep what the heads say of the next token, corrected, to learn from it."""
    sequence.guesses = tokens[:_TESTED_GUESSES], sum(probs[:_TESTED_GUESSES])


def _can_use_heads(sequence: Sequence) -> bool:
    return bool(sequence.hidden) and sequence.uses_heads


def _kind(sequence: Sequence) -> str:
    return "sampled" if sequence.request.sampling.temperature > 0 else "greedy"
