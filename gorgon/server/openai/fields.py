"""What all bodies of ``/v1`` have in common: OpenAI's fields, plus a few of our own.

A field that is not here is refused by name. Null means "not given" wherever OpenAI has it so.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gorgon.request import MAX_SEED, MAX_TOP_K, Acceptance, Mode, SamplingParams, SpeculationParams
from gorgon.server.schemas import CachePrompt, IgnoreEos, StopString, TreePath

MAX_STOPS = 16
MAX_CHOICES = 128


class WireModel(BaseModel):
    """Strict: no unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Speculation(WireModel):
    """How to draft and accept; an extension of ours."""

    mode: Mode = "medusa"
    tree: Annotated[
        list[TreePath] | None,
        Field(max_length=63, description="a fixed tree as paths of ranks: [[0], [0, 0], [1]]"),
    ] = None
    acceptance: Acceptance = "lossless"
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.09
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.3

    def params(self) -> SpeculationParams:
        """For the engine."""
        tree = None if self.tree is None else tuple(tuple(path) for path in self.tree)
        return SpeculationParams(self.mode, tree, self.acceptance, self.epsilon, self.alpha)


class StreamOptions(WireModel):
    """What a stream carries beside text."""

    include_usage: bool = False


class GenerationFields(WireModel):
    """What chats and completions have in common."""

    model: Annotated[str | None, Field(description="the served model, see /v1/models")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="new tokens, at most")] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=MAX_TOP_K, description="0 is off")] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES)] = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | StopString | None = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    logit_bias: Annotated[
        dict[
            Annotated[str, Field(pattern="^[0-9]{1,9}$")],
            Annotated[float, Field(ge=-100, le=100)],
        ]
        | None,
        Field(max_length=1024, description="token ids and what to add to their logits"),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str | None, Field(max_length=256, description="written into the log")] = None
    grammar: Annotated[
        str | None, Field(min_length=1, description="GBNF that the answer must follow")
    ] = None
    speculation: Speculation | None = None
    ignore_eos: IgnoreEos = False
    cache_prompt: CachePrompt = True

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes only with stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(
        self, choice: int, grammar: str | None, trigger: str | None = None
    ) -> SamplingParams:
        """For the engine; the ``choice``-th answer has a seed of its own."""
        seed = None if self.seed is None else (self.seed + choice) % (MAX_SEED + 1)
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=seed,
            logit_bias=tuple((int(k), v) for k, v in (self.logit_bias or {}).items()),
            grammar=grammar,
            grammar_trigger=trigger,
        )
