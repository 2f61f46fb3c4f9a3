"""Turns of a chat as they go over the wire, and as the chat template reads them."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gorgon.server.openai.fields import WireModel
from gorgon.server.text import Message


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
    content: str | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024, fail_fast=True)] | None = None
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

    def for_template(self) -> Message:
        """As the chat template reads it; developers are the system to it."""
        extra: dict[str, Any] = {}
        if self.name is not None:
            extra["name"] = self.name
        if self.tool_call_id is not None:
            extra["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            extra["tool_calls"] = [_call(call) for call in self.tool_calls]
        role = "system" if self.role == "developer" else self.role
        return Message(role, self.text, extra)


def _call(call: ToolCall) -> dict[str, Any]:
    """As templates expect it: arguments as an object where they are one."""
    written = call.model_dump()
    with contextlib.suppress(ValueError):
        written["function"]["arguments"] = json.loads(call.function.arguments)
    return written
