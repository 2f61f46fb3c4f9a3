"""One answer as it came in, and what is kept of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gorgon.bench.document import Block, Percentiles, Sample
from gorgon.bench.prompts import Prompt
from gorgon.bench.statistics import percentiles


@dataclass(frozen=True, slots=True)
class Drafts:
    """What speculation did for one answer, where the party tells."""

    steps: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    drafted_by_depth: Sequence[int] = ()
    accepted_by_depth: Sequence[int] = ()
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Times are of one clock, seconds; ``arrivals`` of each piece of text, in order."""

    prompt: Prompt
    started: float
    arrivals: Sequence[float]
    text: str
    tokens: int
    prompt_tokens: int
    drafts: Drafts = field(default_factory=Drafts)

    def sample(self) -> Sample:
        """What goes into the document."""
        ttft = self.arrivals[0] - self.started
        duration = self.arrivals[-1] - self.started
        drafts = self.drafts
        return Sample(
            prompt=self.prompt.id,
            category=self.prompt.category,
            prompt_tokens=self.prompt_tokens,
            tokens=self.tokens,
            ttft=round(ttft, 6),
            duration=round(duration, 6),
            tpot=round((duration - ttft) / (self.tokens - 1), 7) if self.tokens > 1 else None,
            digest=hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()[:12],
            steps=drafts.steps,
            drafted=drafts.drafted,
            accepted=drafts.accepted,
            drafted_by_depth=list(drafts.drafted_by_depth),
            accepted_by_depth=list(drafts.accepted_by_depth),
            drafted_by_source=dict(drafts.drafted_by_source),
            accepted_by_source=dict(drafts.accepted_by_source),
        )

    @property
    def gaps(self) -> list[float]:
        """Between two arrivals."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [later - earlier for earlier, later in pairs]


@dataclass(frozen=True, slots=True)
class Load:
    """How a block is asked."""

    clients: int
    length: int
    natural: bool
    temperature: float
    seed: int
    spread: float = 0.0

    def length_of(self, prompt: Prompt) -> int:
        """New tokens of its answer, at most: the same for every party."""
        away = random.Random(f"{self.seed} {prompt.id}").uniform(-self.spread, self.spread)
        return max(1, round(self.length * (1.0 + away)))


def make_block(
    party: str, load: Load, key: str, group: str, answers: Sequence[Answer], joules: float | None
) -> Block:
    """The record of a block from its answers."""
    began = min(answer.started for answer in answers)
    ended = max(answer.arrivals[-1] for answer in answers)
    return Block(
        party=party,
        clients=load.clients,
        temperature=load.temperature,
        key=key,
        group=group,
        seconds=round(ended - began, 6),
        samples=[answer.sample() for answer in answers],
        gaps=rounded(percentiles([gap for answer in answers for gap in answer.gaps])),
        energy_joules=joules,
    )


def rounded(found: Percentiles) -> Percentiles:
    """Microseconds are enough."""
    return {name: round(value, 6) for name, value in found.items()}
