"""The wire format of ``/v1`` and of ``/tokenize``: OpenAI's, plus a few fields of our own.

A field that is not here is refused by name. Null means "not given" wherever OpenAI has it so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from gorgon.request import (
    MAX_LOGPROBS,
    MAX_SEED,
    Acceptance,
    Mode,
    SamplingParams,
    SpeculationParams,
)
from gorgon.server.schemas import StopString, TreePath

FinishReason = Literal["stop", "length", "tool_calls"]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
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
    top_k: Annotated[int | None, Field(ge=0, le=2**31 - 1, description="0 is off")] = None
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


class TextPart(WireModel):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(WireModel):
    """What a tool is called with; ``arguments`` is JSON text."""

    name: str
    arguments: str


class ToolCall(WireModel):
    """One call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(WireModel):
    """One turn; every role's content is text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _check_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a message of role '{self.role}' must have content")
        return self

    @property
    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class JsonSchema(WireModel):
    """A schema with its name."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(WireModel):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(WireModel):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class Function(WireModel):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(WireModel):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class FunctionName(WireModel):
    """A function by its name."""

    name: str


class NamedTool(WireModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(GenerationFields):
    """A chat to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                    "max_tokens": 64,
                    "temperature": 0.0,
                }
            ]
        }
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None
    response_format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat | None, Field(discriminator="type")
    ] = None
    tools: Annotated[list[Tool] | None, Field(min_length=1, max_length=64)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes only with logprobs")
        if self.max_completion_tokens and self.max_tokens:
            raise ValueError("max_tokens is the old name of max_completion_tokens; give one")
        if not self.tools and self.tool_choice not in (None, "none"):
            raise ValueError("tool_choice goes only with tools")
        return self


class CompletionRequest(GenerationFields):
    """A text, or several, to continue as it stands."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_tokens": 32}]}
    )

    prompt: str | TokenIds | list[str] | list[TokenIds]
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens; a prompt that several answers share counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class SpeculationStats(BaseModel):
    """What drafting did for all answers of a request; times are of the slowest, in seconds."""

    steps: int
    drafted: int
    accepted: int
    tokens_per_step: float
    drafted_by_depth: list[int]
    accepted_by_depth: list[int]
    drafted_by_source: dict[str, int]
    accepted_by_source: dict[str, int]
    queue_time: float
    prefill_time: float
    decode_time: float


class TopLogprob(BaseModel):
    """One likely token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of the answer with the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of every token of the answer."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatAnswer(BaseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    speculation: SpeculationStats


class TextLogprobs(BaseModel):
    """Of every token of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason


class TextAnswer(BaseModel):
    """Continuations, those of the first prompt first."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    speculation: SpeculationStats


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gorgon"
    max_model_len: int
    heads: int


class ModelList(BaseModel):
    """All served models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeRequest(WireModel):
    """Text, or a chat as the model sees it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Hello, world"}]})

    text: str | None = None
    messages: Annotated[list[ChatMessage] | None, Field(min_length=1)] = None
    add_special: Annotated[bool, Field(description="BOS where the model wants one")] = True

    @model_validator(mode="after")
    def _check_one(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self


class TokenizeAnswer(BaseModel):
    """Token ids with the bytes of each as text."""

    tokens: list[int]
    pieces: list[str]
    count: int


class DetokenizeRequest(WireModel):
    """Token ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [19556, 28, 905]}]})

    tokens: list[TokenId]


class DetokenizeAnswer(BaseModel):
    """Their text."""

    text: str


def dump(model: BaseModel) -> dict[str, Any]:
    """As it goes over the wire."""
    return model.model_dump(by_alias=True)
