"""One answer as it grows, and what all answers of a body cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gorgon.request import FinishReason, RequestStats, TokenLogprob
from gorgon.server.openai.answers import PromptTokensDetails, SpeculationStats, Usage
from gorgon.server.openai.deltas import Delta


@dataclass(slots=True)
class Choice:
    """One answer; ``finish`` is OpenAI's word for why it ended."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    finish: str = "length"
    stats: RequestStats = field(default_factory=RequestStats)

    def add(self, delta: Delta) -> None:
        """Take what one step brought."""
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.num_tokens = delta.num_tokens
        if delta.finish is not None:
            self.finish = "stop" if delta.finish is FinishReason.STOP else "length"
            self.stats = delta.stats or self.stats


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> Usage:
    """Tokens of all answers; ``choices`` hold those of the first prompt first."""
    prompt = sum(map(len, prompts))
    completion = sum(choice.num_tokens for choice in choices)
    each = len(choices) // len(prompts)
    cached = sum(choice.stats.cached_tokens for choice in choices[::each])
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def speculation(choices: Sequence[Choice]) -> SpeculationStats:
    """What drafting did for all answers."""
    stats = [choice.stats for choice in choices]
    steps = sum(s.steps for s in stats)
    tokens = sum(choice.num_tokens for choice in choices)
    return SpeculationStats(
        steps=steps,
        drafted=sum(s.drafted for s in stats),
        accepted=sum(s.accepted for s in stats),
        tokens_per_step=tokens / steps if steps else 0.0,
        drafted_by_depth=_add_lists([s.drafted_by_depth for s in stats]),
        accepted_by_depth=_add_lists([s.accepted_by_depth for s in stats]),
        drafted_by_source=_add_counts([s.drafted_by_source for s in stats]),
        accepted_by_source=_add_counts([s.accepted_by_source for s in stats]),
        queue_time=max(s.queue_time for s in stats),
        prefill_time=max(s.prefill_time for s in stats),
        decode_time=max(s.decode_time for s in stats),
    )


def _add_lists(lists: Sequence[Sequence[int]]) -> list[int]:
    length = max(map(len, lists), default=0)
    return [sum(counts[i] for counts in lists if i < len(counts)) for i in range(length)]


def _add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}
