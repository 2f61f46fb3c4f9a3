"""Bodies of ``/v1/chat/completions``, ``/v1/completions``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from gorgon.request import MAX_LOGPROBS
from gorgon.server.openai.fields import MAX_CHOICES, GenerationFields, WireModel
from gorgon.server.openai.messages import ChatMessage

MAX_MESSAGES = 2048
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# fail_fast: of a million wrong items one is enough to be told about.
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Prompts = Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)]
PromptsOfIds = Annotated[list[TokenIds], Field(max_length=MAX_CHOICES, fail_fast=True)]
Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]


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

    messages: Messages
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

    prompt: str | TokenIds | Prompts | PromptsOfIds
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS)] = None


class TokenizeRequest(WireModel):
    """Text, or a chat as the model sees it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Hello, world"}]})

    text: str | None = None
    messages: Messages | None = None
    add_special: Annotated[bool, Field(description="BOS where the model wants one")] = True

    @model_validator(mode="after")
    def _check_one(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self


class DetokenizeRequest(WireModel):
    """Token ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [19556, 28, 905]}]})

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
