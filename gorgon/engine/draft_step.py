"""One step's candidates beside what they would cost."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from gorgon.backend import Drafts, Nodes
from gorgon.engine.sequence import Sequence
from gorgon.speculation import best_first, budget
from gorgon.speculation.candidates import Candidates
from gorgon.speculation.habit import Plan
from gorgon.speculation.rows import Chain, ChainedRow, Row
from gorgon.speculation.tree import DraftTree, Source, root_only, shape_of

MARGIN = 1.02  # by which drafts must seem better than none
_SOURCES = (Source.ROOT, Source.HEADS, Source.LOOKUP, Source.BOTH)  # as ``Nodes`` has them


class DraftStep:
    """What is known while the drafts of a step are chosen.

    Args:
        candidates: drafts so far; those of fixed trees and nothing else.
        sequences: the requests, in the order of the candidates' roots.
        free: indices of those whose trees are to be chosen.
        curve: seconds of a step by its tokens, as far as there is room.
        plan: the number of drafts, where it is not for this step to choose.
        trust: what drafts really brought lately, over what was expected.
    """

    def __init__(
        self,
        candidates: Candidates,
        sequences: Seq[Sequence],
        free: list[int],
        curve: Seq[float],
        plan: Plan | None = None,
        trust: float = 1.0,
    ) -> None:
        self.candidates, self.sequences, self.free = candidates, sequences, free
        self._num_sure, self.curve = len(candidates), curve
        self._num_room = len(curve) - 1 - self._num_sure
        self.num_wanted = self._num_room if plan is None else plan.width
        self._ranked: list[int] = []
        self._least_ranked = 0.0
        self._plan, self._trust, self.spent = plan, trust, 0.0
        self.least_gain = MARGIN / trust
        self._taken: Drafts | None = None
        self.survivals: list[float] = []
        self.chains: dict[int, Chain] = {}  # looked up below roots
        plain = self._num_sure / curve[self._num_sure]
        self.choice = budget.Choice(0, plain) if plan is None else self._choose((), 0.0)

    def choose(self, spent: float = 0.0) -> budget.Choice:
        """Find the best number of drafts beside the roots and the fixed trees, and keep it."""
        self._add_chains()
        new = range(self._num_sure + len(self._ranked), len(self.candidates))
        self._ranked = self.candidates.ranked([*self._ranked, *new])
        survivals = self.candidates.survivals
        self.survivals = [survivals[node] for node in self._ranked]
        if 0 < self.num_wanted <= len(self._ranked):
            self._least_ranked = self.survivals[self.num_wanted - 1]
        self.choice, self.spent = self._choose(self.survivals, spent), spent
        return self.choice

    def grow(self, rows: dict[int, Row], spent: float) -> None:
        """Find the best number of drafts where all are known, and add hardly more than these.

        Args:
            rows: what the heads guess below roots; what was looked up is taken in.
            spent: seconds that finding them took.
        """
        candidates, first = self.candidates, self._num_sure
        candidates.cut(first)
        for root, chain in self.chains.items():
            rows[root] = ChainedRow(rows.get(root), chain)
        growth = best_first.grow(candidates, rows)
        if self._plan is None:
            self.choice = self._choose(growth, spent, growing=True)
        else:  # a lesson is about all that there is room for
            count = self._num_room if self._plan.teaches else self.choice.num_drafts
            collections.deque(itertools.islice(growth, count), maxlen=0)
        self.spent, self.survivals = spent, candidates.survivals[first:]
        self._ranked = list(range(first, len(candidates)))

    @property
    def is_open(self) -> bool:
        """Whether any number of drafts may be chosen, and none is fixed."""
        return self._plan is None and self._num_sure == self.candidates.num_roots

    def take(self, drafts: Drafts) -> None:
        """Keep what was chosen elsewhere, in a step that ``is_open``."""
        self.choice = budget.Choice(drafts.num_drafts, drafts.rate)
        self.spent, self._taken = drafts.spent, drafts

    def _choose(
        self, survivals: Iterable[float], spent: float, *, growing: bool = False
    ) -> budget.Choice:
        if self._plan is None:
            sure, least_gain = self._num_sure, self.least_gain
            return budget.choose(survivals, sure, self.curve, spent, least_gain, growing=growing)
        return budget.Choice(min(self._plan.num_drafts, self._num_room), self._plan.rate)

    def _add_chains(self) -> None:
        """Add what was looked up, unless that has been done."""
        if self.chains and len(self.candidates) == self._num_sure:
            floor = self.floor()
            for root, chain in self.chains.items():
                self.candidates.add_chain(root, *chain, floor, Source.LOOKUP)

    def gain(self) -> float:
        """Log ratio of the tokens/s that the last choice should bring to those of no drafting."""
        plain = self._num_sure / self.curve[self._num_sure]
        trust = self._trust if self.choice.num_drafts else 1.0
        return math.log(trust * self.choice.rate / plain)

    def share(self, seconds: float) -> float:
        """``seconds`` as a part of a step without drafts."""
        return seconds / self.curve[self._num_sure]

    def floor(self) -> float:
        """Survival below which no draft can pay at the rate of the last choice, or has no room."""
        if self._plan is not None:
            return self._least_ranked
        least = budget.least_survival(self._num_sure, self.curve, self.choice.rate)
        return max(least, self._least_ranked)

    def add_level(
        self, parents: list[int], tokens: list[list[int]], probs: list[list[float]]
    ) -> dict[int, int]:
        """Add what the heads guess below ``parents``; see ``Candidates.add_level``."""
        self._add_chains()
        return self.candidates.add_level(parents, tokens, probs, self.floor(), Source.HEADS)

    def price(self) -> float:
        """Survival that one more draft beside those last chosen must have to pay."""
        if self._plan is not None:
            return self._least_ranked
        num_tokens = self._num_sure + self.choice.num_drafts
        return budget.least_survival(num_tokens, self.curve, self.choice.rate)

    def expected(self) -> tuple[float, float]:
        """Tokens and seconds of the step with the drafts that were chosen."""
        count, taken = self.choice.num_drafts, self._taken
        survival = sum(self.survivals[:count]) if taken is None else taken.survival
        tokens = self._num_sure + survival
        return tokens, self.curve[self._num_sure + count] + self.spent

    def trees(self) -> list[DraftTree]:
        """The trees of the fixed drafts and the likeliest of the others, as last chosen.

        Where a plan says how many, they are filled up to it.
        """
        if self._taken is not None:
            roots, trees = self.candidates.tokens[: self._num_sure], self._taken.trees
            return [
                _tree(token, trees[root]) if root in trees else root_only(token)
                for root, token in enumerate(roots)
            ]
        fixed = range(self.candidates.num_roots, self._num_sure)
        chosen = self._ranked[: self.choice.num_drafts]
        if self._plan is not None:
            chosen += self._fill(self.choice.num_drafts - len(chosen))
        return self.candidates.trees([*fixed, *chosen])

    def _fill(self, count: int) -> list[int]:
        """Up to ``count`` drafts that nobody expects to come, in chains below the roots."""
        added: list[int] = []
        for root in self.free:
            if len(added) == count:
                break
            node, token = root, self.candidates.unused_token(root)
            for _ in range(min(count - len(added), self.candidates.room_below(root))):
                node = self.candidates.add(node, token, 0.0, Source.FILL)
                added.append(node)
        return added


def _tree(root: int, nodes: Nodes) -> DraftTree:
    """The tree of ``nodes`` whose root is the token ``root``."""
    sources = tuple([_SOURCES[source] for source in nodes.sources])
    return DraftTree(shape_of(nodes.parents), (root, *nodes.tokens[1:]), nodes.probs, sources)
