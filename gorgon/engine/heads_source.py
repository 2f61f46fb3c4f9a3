"""The heads as a source of drafts: their guesses go into the candidates as deep as it pays."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from gorgon.backend import NUM_TESTED, Backend, Guesses, Terms
from gorgon.engine.draft_step import DraftStep
from gorgon.engine.heads_calls import Above, HeadsCalls
from gorgon.engine.sequence import Sequence
from gorgon.speculation import budget
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.coupling import strength
from gorgon.speculation.rows import IndependentRow, Row, SearchedRow, searched
from gorgon.speculation.survival import Correction
from gorgon.speculation.tree import DraftTree, Source

_TOP_RATE = 0.02  # of one step in the mean probability of best guesses by depth


class HeadsSource:
    """Adds guesses of the heads to a step and corrects what they state by what came.

    Args:
        backend: what the heads are like: conditioned or not, how deep, whether they search.
        calls: the heads.
    """

    def __init__(self, backend: Backend, calls: HeadsCalls) -> None:
        self._backend, self._calls = backend, calls
        self._top = array("d", [0.5] * (backend.num_heads + 2))

    def add(self, step: DraftStep, roots: list[int]) -> bool:
        """Add what the heads guess below ``roots``; whether they answered."""
        if self._backend.drafts and step.is_open:
            return self._add_drafts(step, roots)
        add = self._add_search if self._backend.searches else self._add_guesses
        return add(step, roots)

    # -- all of a step's drafts in one call -------------------------------------------------------

    def _add_drafts(self, step: DraftStep, roots: list[int]) -> bool:
        """Take the drafts that the backend chooses by itself; whether it did."""
        sequences, calls = [step.sequences[root] for root in roots], self._calls
        shifts: list[float] = []
        for sequence in sequences:
            shifts += sequence.heads_correction.shifts(self._backend.num_heads)
        propose, deepen = calls.propose_cost, calls.deepen_cost
        noises = [sequence.noise for sequence in sequences]
        terms = Terms(
            roots,
            step.candidates.max_depths,
            step.curve,
            step.least_gain,
            shifts,
            self._top,
            _TOP_RATE,
            (propose.base, propose.per_row, propose.rate),
            (deepen.base, deepen.per_row, deepen.rate),
            step.chains,
            noises,
            [strength(noise) for noise in noises],
        )
        found = calls.draft(sequences, terms)
        if found is None:
            return False
        count = len(found.tested) // len(sequences)
        for i, (sequence, probability) in enumerate(
            zip(sequences, found.tested_probs, strict=True)
        ):
            sequence.guesses = list(found.tested[i * count : (i + 1) * count]), probability
        step.take(found)
        return True

    # -- all depths in one call -------------------------------------------------------------------

    def _add_search(self, step: DraftStep, roots: list[int]) -> bool:
        """Add the best of what a search finds; whether it did."""
        found = self._calls.search([step.sequences[root] for root in roots])
        if found is None:
            return False
        levels = [searched(level) for level in found]
        rows = {
            root: SearchedRow(levels, row, *self._bounds(step, root))
            for row, root in enumerate(roots)
        }
        self._grow(step, rows)
        return True

    def _add_independent(self, step: DraftStep, roots: list[int], guesses: Guesses) -> None:
        """Add the best guesses of independent heads, which hold below every node."""
        tokens, stated = guesses.tokens.tolist(), guesses.probs.tolist()
        rows = {
            root: IndependentRow(tokens[row], stated[row], *self._bounds(step, root))
            for row, root in enumerate(roots)
        }
        self._grow(step, rows)

    def _bounds(self, step: DraftStep, root: int) -> tuple[Correction, int]:
        """What corrects the guesses below ``root``, and how deep they may go."""
        return step.sequences[root].heads_correction, step.candidates.room_below(root)

    def _grow(self, step: DraftStep, rows: Mapping[int, Row]) -> None:
        for root, row in rows.items():
            probs = row.first(NUM_TESTED)
            _note_guesses(step.sequences[root], row.tokens, probs)
        step.grow(dict(rows), self._calls.propose_cost.at(len(rows)))

    # -- guesses ----------------------------------------------------------------------------------

    def _add_guesses(self, step: DraftStep, roots: list[int]) -> bool:
        """Add what the heads guess, as deep as it pays; whether they answered."""
        guesses = self._calls.propose([step.sequences[root] for root in roots])
        if guesses is None:
            return False
        add = self._add_independent if guesses.states is None else self._add_levels
        add(step, roots, guesses)
        return True

    def _add_levels(self, step: DraftStep, roots: list[int], guesses: Guesses) -> None:
        """Conditioned heads: one call for each depth, about the nodes worth going on from."""
        parents, spent = roots, self._calls.propose_cost.at(len(roots))
        for depth in range(1, self._backend.num_heads + 1):
            rows = self._add_level(step, parents, guesses, depth)
            step.choose(spent)
            parents = self._worth_deepening(step, rows, depth + 1)
            if not parents:
                return
            candidates = step.candidates
            above = [
                Above(candidates.owner(node), rows[node], candidates.tokens[node])
                for node in parents
            ]
            below = self._calls.deepen(step.sequences, guesses, above, depth + 1)
            if below is None:
                return
            spent += self._calls.deepen_cost.at(len(parents))
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
        call = self._calls.deepen_cost
        return nodes[: budget.num_worth(gains, rate * call.base, rate * call.per_row)]

    # -- feedback ---------------------------------------------------------------------------------

    def learn(self, sequence: Sequence, tree: DraftTree, accepted: Accepted) -> None:
        """Compare what was stated with what came.

        Every token drawn tests the drafts that hung below the node it was drawn at, and the first
        one also tests what the heads said without being drafted. Guesses of one token are learnt
        from together: one at most can be right.
        """
        correction = sequence.heads_correction
        if sequence.guesses is not None:
            tokens, stated = sequence.guesses
            correction.learn(stated, 1, accepted.tokens[0] in tokens)
            sequence.guesses = None
        for node, token in zip(accepted.path[1:], accepted.tokens[1:], strict=True):
            below = [c for c in tree.shape.children[node] if tree.sources[c] is Source.HEADS]
            if below:
                right = token in [tree.tokens[child] for child in below]
                stated = sum([tree.probs[child] for child in below])
                correction.learn(stated, tree.shape.depths[below[0]], right)


def _note_guesses(sequence: Sequence, tokens: list[int], probs: list[float]) -> None:
    """Keep what the heads say of the next token, corrected, to learn from it."""
    sequence.guesses = tokens[:NUM_TESTED], sum(probs[:NUM_TESTED])
