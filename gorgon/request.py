"""What crosses the boundary between a front end and the engine: frozen, typed, token ids only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gorgon.errors import RequestError

Mode = Literal["medusa", "normal", "lookup", "fixed"]
Acceptance = Literal["lossless", "typical"]
TreePaths = tuple[tuple[int, ...], ...]

MAX_SEED = 2**32 - 2  # 2**32 - 1 is LLAMA_DEFAULT_SEED: "draw one at random"
MIN_TEMPERATURE = 1e-4  # below it, quotients of logits overflow and the likeliest token wins anyway
MAX_TOP_K = 2**31 - 1  # what a C int holds
MAX_LOGPROBS = 20  # alternatives a token, OpenAI's limit


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end-of-generation token, or a stop string found by the front end
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client left
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn from the model's logits.

    The defaults are greedy decoding with no penalty. Ranges: ``temperature`` >= 0 (below
    ``MIN_TEMPERATURE`` is greedy), ``top_k`` >= 0 (0 is off), ``top_p`` in (0, 1], ``min_p`` in
    [0, 1], ``repetition_penalty`` > 0, the two other penalties in [-2, 2]. ``logit_bias`` adds to
    the logits of single tokens, -100 to 100. ``grammar`` (GBNF, start rule ``root``) allows only
    tokens that continue a text of its language, from the first token on or, with
    ``grammar_trigger``, from where the model writes that string.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    grammar_trigger: str | None = None

    def __post_init__(self) -> None:
        _check(0.0 <= self.temperature <= 100.0, "temperature", "between 0 and 100")
        _check(0 <= self.top_k <= MAX_TOP_K, "top_k", f"0 (off) to {MAX_TOP_K}")
        _check(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        _check(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        _check(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty", "above 0, at most 10")
        _check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2")
        _check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2")
        _check(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed", f"between 0 and {MAX_SEED}")
        biases = [bias for _, bias in self.logit_bias]
        _check(all(-100.0 <= b <= 100.0 for b in biases), "logit_bias", "between -100 and 100")

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty moves the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is drawn."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def is_temperature_alone(self) -> bool:
        """Whether every token can be drawn, in proportion to its weight at the temperature."""
        alone = SamplingParams(temperature=self.temperature, seed=self.seed)
        return not self.is_greedy and self == alone

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the draw is the argmax of the untouched logits."""
        return (
            self.is_greedy
            and not self.has_penalties
            and not self.logit_bias
            and self.grammar is None
        )


@dataclass(frozen=True, slots=True)
class SpeculationParams:
    """How a request drafts and accepts.

    ``mode``: ``medusa`` drafts with the heads and by lookup, as much as pays; ``lookup`` with no
    heads; ``normal`` not at all; ``fixed`` always tries ``tree``. That is a list of rank paths
    (Medusa paper, section 2.3.3): ``(0, 2)`` is the third guess of head 1 below the first guess
    of head 0. With a tree, ``medusa`` means ``fixed``.
    ``typical`` acceptance (same paper, 2.3.1) takes a child when
    ``p > min(epsilon, alpha * exp(-H(p)))``: faster, but no longer the model's own distribution.
    """

    mode: Mode = "medusa"
    tree: TreePaths | None = None
    acceptance: Acceptance = "lossless"
    epsilon: float = 0.09
    alpha: float = 0.3

    def __post_init__(self) -> None:
        _check(0.0 < self.epsilon <= 1.0, "epsilon", "above 0 and at most 1")
        _check(0.0 < self.alpha <= 1.0, "alpha", "above 0 and at most 1")
        _check(self.mode != "fixed" or self.tree is not None, "tree", "given in mode 'fixed'")
        _check(
            self.tree is None or self.mode in ("medusa", "fixed"),
            "tree",
            f"left out in mode '{self.mode}'",
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: prompt token ids in, at most ``max_tokens`` new token ids out.

    ``num_logprobs`` asks for the log-probability of every new token and of as many likeliest ones
    beside it (0: none beside it; None: no log-probabilities).
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    ignore_eos: bool = False
    reuse_prefix: bool = True
    num_logprobs: int | None = None
    want_tree: bool = False

    def __post_init__(self) -> None:
        _check(len(self.prompt_ids) > 0, "prompt", "at least one token")
        _check(self.max_tokens >= 1, "max_length", "1 or more")
        count = self.num_logprobs
        _check(count is None or 0 <= count <= MAX_LOGPROBS, "logprobs", f"0 to {MAX_LOGPROBS}")
        is_biased = self.sampling.grammar is not None or bool(self.sampling.logit_bias)
        if self.speculation.acceptance == "typical" and is_biased:
            raise RequestError(
                "acceptance 'typical' weighs the model's own distribution, so it goes with "
                "neither grammar nor logit_bias; use 'lossless'",
                field="acceptance",
            )


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What one request cost; times in seconds.

    ``accepted_by_depth[d]`` counts accepted draft tokens at depth d + 1, ``drafted_by_depth``
    the drafted ones; ``..._by_source`` likewise for ``heads``, ``lookup`` and ``both`` (the two
    named the same token). ``prefill_time`` runs from admission to the first token, ``decode_time``
    from there to the last. ``max_batch`` is the largest number of requests that shared a step
    with this one, itself included.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_depth: tuple[int, ...] = ()
    accepted_by_depth: tuple[int, ...] = ()
    drafted_by_source: Mapping[str, int] = field(default_factory=dict)
    accepted_by_source: Mapping[str, int] = field(default_factory=dict)
    queue_time: float = 0.0
    prefill_time: float = 0.0
    decode_time: float = 0.0
    max_batch: int = 0

    @property
    def num_generated(self) -> int:
        """New tokens: one drawn in every step, and the accepted drafts."""
        return self.steps + self.accepted


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, in nats, by the model's logits before any sampling setting.

    ``top`` holds the likeliest tokens with theirs, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TreeTrace:
    """The tree that a step tried, for front ends that show it.

    Node 0 is the root, the token known before the step; ``parents[i] < i`` for every other node.
    ``sources[i]`` names who drafted node i, ``survival[i]`` is the stated probability that it is
    kept, ``path`` holds the nodes that were, root first.
    """

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    sources: tuple[str, ...]
    survival: tuple[float, ...]
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave one request.

    ``depths[i]`` is 0 where ``tokens[i]`` was drawn with no draft behind it and d where it was
    drafted at depth d of the tree and accepted. ``logprobs`` has one entry a token if the request
    asked for them. ``finish`` and ``stats`` come with the last one, ``tree``
    with each one if ``Request.want_tree`` is set.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    finish: FinishReason | None = None
    stats: RequestStats | None = None
    error: Exception | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tree: TreeTrace | None = None


def _check(ok: bool, name: str, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{name} must be {allowed}", field=name)
