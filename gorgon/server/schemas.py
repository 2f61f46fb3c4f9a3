"""The wire format of ``/generate`` and ``/compare``: validated in, documented out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gorgon.request import (
    MAX_SEED,
    MAX_TOP_K,
    Acceptance,
    FinishReason,
    Mode,
    SamplingParams,
    SpeculationParams,
)

StopString = Annotated[str, Field(min_length=1, max_length=256)]
TreePath = Annotated[list[Annotated[int, Field(ge=0, le=63)]], Field(min_length=1, max_length=16)]
IgnoreEos = Annotated[
    bool, Field(description="go on to the full length where the model would end; for measurements")
]
CachePrompt = Annotated[
    bool, Field(description="use what earlier requests left in the prefix cache")
]


class GenerateRequest(BaseModel):
    """A prompt and how to continue it."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"prompt": "Why is the sky blue?", "max_length": 64}],
        },
    )

    prompt: Annotated[str, Field(min_length=1)]
    max_length: Annotated[
        int | None, Field(ge=1, description="new tokens, at most; the server's default if left out")
    ] = None
    chat: Annotated[
        bool, Field(description="put the prompt into the model's chat template as a user's turn")
    ] = True
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    ignore_eos: IgnoreEos = False
    cache_prompt: CachePrompt = True
    stop: Annotated[list[StopString], Field(max_length=16)] = []
    acceptance: Annotated[
        Acceptance, Field(description="'typical' trades the model's exact distribution for speed")
    ] = "lossless"
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.09
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.3
    tree: Annotated[
        list[TreePath] | None,
        Field(max_length=63, description="a fixed tree as paths of ranks: [[0], [0, 0], [1]]"),
    ] = None

    def sampling(self) -> SamplingParams:
        """The sampling fields."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
        )

    def speculation(self, mode: Mode) -> SpeculationParams:
        """The speculation fields, for one of the modes; plain decoding has no use for a tree."""
        tree = self.tree if mode in ("medusa", "fixed") else None
        return SpeculationParams(
            mode=mode,
            tree=None if tree is None else tuple(tuple(path) for path in tree),
            acceptance=self.acceptance,
            epsilon=self.epsilon,
            alpha=self.alpha,
        )


class GenerateResponse(BaseModel):
    """A text and what it cost; times in seconds."""

    text: str
    generation_time: Annotated[float, Field(description="prefill_time + decode_time")]
    tokens_generated: int
    tokens_per_second: Annotated[float, Field(description="tokens_generated / generation_time")]
    speedup_factor: Annotated[
        float,
        Field(
            description="tokens per second relative to plain decoding: 1.0 in normal mode, in "
            "/compare against the normal run beside it, else against this machine's measured "
            "time of a one-token step at that context length"
        ),
    ]
    acceptance_rate: Annotated[
        float | None, Field(description="percent of drafted tokens accepted; null if none were")
    ]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: Annotated[
        int, Field(description="prompt tokens that earlier or other requests had computed")
    ]
    steps: Annotated[int, Field(description="forward passes that gave tokens")]
    tokens_per_step: float
    drafted: int
    accepted: int
    accepted_by_depth: list[int]
    drafted_by_depth: list[int]
    accepted_by_source: dict[str, int]
    drafted_by_source: dict[str, int]
    queue_time: float
    prefill_time: float
    decode_time: float


class CompareResponse(BaseModel):
    """The same prompt in both modes, one after the other."""

    normal: GenerateResponse
    medusa: GenerateResponse
    speedup: Annotated[float, Field(description="medusa's tokens per second over normal's")]
    same_text: bool
    quiet: Annotated[
        bool, Field(description="no other request ran meanwhile; if false, time is not comparable")
    ]


class ErrorDetail(BaseModel):
    """What went wrong and what to do about it."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorResponse(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class StatusResponse(BaseModel):
    """Health and readiness."""

    status: str
    model: str | None = None
    heads: int | None = None


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 429, 500, 503, 504)
}
