"""Answers of ``/v1``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gorgon.server.openai.messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


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


class TokenizeAnswer(BaseModel):
    """Token ids with the bytes of each as text."""

    tokens: list[int]
    pieces: list[str]
    count: int


class DetokenizeAnswer(BaseModel):
    """Their text."""

    text: str


def dump(model: BaseModel) -> dict[str, Any]:
    """As it goes over the wire."""
    return model.model_dump(by_alias=True)
