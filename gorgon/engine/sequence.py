"""The state of one running request: two counters, no phase.

    tokens      p p p p p p g g g | r        p prompt, g generated, r the root
    cells       c c c c c c c c c |          num_computed = len(cells)

A request decodes when exactly one known token is not computed yet: the root of its next tree.
With more than one it has prompt to catch up on, or waits while another computes the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gorgon.backend import Sampler
from gorgon.engine.tally import Tally
from gorgon.noise import Noise
from gorgon.request import Request, RequestStats
from gorgon.speculation.acceptance import Accepted
from gorgon.speculation.lookup import Match, Occurrences
from gorgon.speculation.survival import Correction
from gorgon.speculation.tree import DraftTree, TreeShape


@dataclass(slots=True)
class Side:
    """A further sequence id of a request, for tree branches beside the main one.

    It holds the request's cells up to position ``synced``; it catches up when it is used.
    """

    id: int
    synced: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One admitted request.

    ``shape`` is the tree that it insists on, None where the drafter chooses. ``has_states`` says
    whether its latest hidden states are kept for the heads, see ``States``. ``match`` and
    ``guesses`` are what lookup and heads said of the token after the root, until it is known:
    ``match_prob`` is how probable the first is, and ``guesses`` are the heads' likeliest tokens
    and the probability of all these together.
    ``leader`` computes the first ``num_shared`` tokens of this prompt too; they are taken over.
    """

    request: Request
    sampler: Sampler
    id: int
    shape: TreeShape | None
    admitted_at: float
    queue_time: float
    tokens: list[int]
    cells: list[int]
    cached_tokens: int = 0
    leader: Sequence | None = None
    num_shared: int = 0
    sides: list[Side] = field(default_factory=list)
    has_states: bool = False
    occurrences: Occurrences = field(default_factory=Occurrences)
    match: Match | None = None
    match_prob: float = 0.0
    guesses: tuple[list[int], float] | None = None
    heads_correction: Correction = field(default_factory=Correction)
    lookup_correction: Correction = field(default_factory=Correction)
    steps: int = 0
    tally: Tally = field(default_factory=Tally)
    prefill_time: float = 0.0
    decode_time: float = 0.0
    max_batch: int = 0

    @property
    def num_computed(self) -> int:
        """Tokens whose cells are in the cache."""
        return len(self.cells)

    @property
    def num_behind(self) -> int:
        """Known tokens that are not computed yet; 1 means ready to decode."""
        return len(self.tokens) - len(self.cells)

    @property
    def num_generated(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_remaining(self) -> int:
        """New tokens that may still come."""
        return self.request.max_tokens - self.num_generated

    def last_tokens(self, count: int) -> list[int]:
        """The last ``count`` tokens, the latest first; 0 before the start of the text."""
        tokens = self.tokens[: -count - 1 : -1]
        return tokens + [0] * (count - len(tokens))

    @property
    def noise(self) -> Noise | None:
        """What a draft must win with to be kept; None where it must be likely or plausible."""
        is_lossless = self.request.speculation.acceptance == "lossless"
        return self.sampler.noise if is_lossless else None

    @property
    def uses_heads(self) -> bool:
        """Whether the heads may draft for it."""
        return self.request.speculation.mode in ("medusa", "fixed")

    def count(self, tree: DraftTree, accepted: Accepted) -> None:
        """Add one step to the statistics."""
        self.steps += 1
        if len(tree.tokens) > 1:
            self.tally.add(tree, accepted.path)

    def stats(self) -> RequestStats:
        """What the request cost so far."""
        tally = self.tally
        tally.count()
        depths = range(1, max(tally.drafted_by_depth, default=0) + 1)
        return RequestStats(
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached_tokens,
            steps=self.steps,
            drafted=tally.drafted_by_depth.total(),
            accepted=tally.accepted_by_depth.total(),
            drafted_by_depth=tuple(tally.drafted_by_depth[d] for d in depths),
            accepted_by_depth=tuple(tally.accepted_by_depth[d] for d in depths),
            drafted_by_source=dict(tally.drafted_by_source),
            accepted_by_source=dict(tally.accepted_by_source),
            queue_time=self.queue_time,
            prefill_time=self.prefill_time,
            decode_time=self.decode_time,
            max_batch=self.max_batch,
        )
