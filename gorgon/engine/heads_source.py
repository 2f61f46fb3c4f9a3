"""The heads as a source of drafts: their guesses go into the candidates as deep as it pays."""

from __future__ import annotations

from gorgon.backend import Backend, Guesses
from gorgon.engine.draft_step import DraftStep
from gorgon.engine.heads_calls import HeadsCalls
from gorgon.engine.sequence import Sequence
from gorgon.speculation import budget
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.candidates import most_below
from gorgon.speculation.survival import apply_all
from gorgon.speculation.tree import DraftTree, Source

_TESTED_GUESSES = 3  # first guesses of the heads that are tested by the next token, drafted or not
_TOP_RATE = 0.02  # of one step in the mean probability of best guesses by depth


class HeadsSource:
    """Adds guesses of the heads to a step and corrects what they state by what came.

    Args:
        backend: what the heads are like: conditioned or not, how deep, whether they search.
        calls: the heads.
    """

    def __init__(self, backend: Backend, calls: HeadsCalls) -> None:
        self._backend, self._calls = backend, calls
        self._top = [0.5] * (backend.num_heads + 2)

    def add(self, step: DraftStep, roots: list[int]) -> bool:
        """Add what the heads guess below ``roots``; whether they answered."""
        add = self._add_search if self._backend.searches else self._add_guesses
        return add(step, roots)

    # -- all depths in one call -------------------------------------------------------------------

    def _add_search(self, step: DraftStep, roots: list[int]) -> bool:
        """Add all that one call finds; whether it did."""
        levels = self._calls.search([step.sequences[root] for root in roots])
        if levels is None:
            return False
        spent = self._calls.propose_cost.at(len(roots))
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

    # -- guesses ----------------------------------------------------------------------------------

    def _add_guesses(self, step: DraftStep, roots: list[int]) -> bool:
        """Add what the heads guess, as deep as it pays; whether they answered."""
        guesses = self._calls.propose([step.sequences[root] for root in roots])
        if guesses is None:
            return False
        spent = self._calls.propose_cost.at(len(roots))
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
            below = self._calls.deepen(guesses, above, depth + 1)
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
    sequence.guesses = tokens[:_TESTED_GUESSES], sum(probs[:_TESTED_GUESSES])
