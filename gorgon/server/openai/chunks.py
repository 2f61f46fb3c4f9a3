"""What a stream says of each choice, step by step, as OpenAI's clients expect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gorgon.server.openai.answers import dump
from gorgon.server.openai.choice import Choice
from gorgon.server.openai.deltas import Delta
from gorgon.server.openai.messages import ToolCall
from gorgon.server.openai.token_text import TokenText
from gorgon.server.openai.tools import ToolCallReader


class ChoiceChunks(Protocol):
    """The chunks of one choice."""

    def push(self, delta: Delta, choice: Choice) -> list[dict[str, Any]]:
        """What one step adds; the last one has the reason of the end."""


class ChatChunks:
    """Of a chat; ``reader`` keeps tool calls apart, if there may be any."""

    def __init__(
        self,
        index: int,
        token_text: TokenText,
        reader: ToolCallReader | None,
    ) -> None:
        self._index, self._token_text, self._reader = index, token_text, reader
        self._begun = False

    def push(self, delta: Delta, choice: Choice) -> list[dict[str, Any]]:
        """See ``ChoiceChunks``; the last chunk has no text."""
        chunks = []
        if not self._begun:
            self._begun = True
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        text, calls = self._read(delta)
        logprobs = None
        if delta.logprobs:
            logprobs = dump(self._token_text.chat_logprobs(delta.logprobs))
        if text or logprobs:
            chunks.append(self._chunk({"content": text}, logprobs))
        if calls:
            parts = [{"index": i, **dump(call)} for i, call in enumerate(calls)]
            chunks.append(self._chunk({"tool_calls": parts}))
        if delta.finish is not None:
            chunks.append(self._chunk({}, finish="tool_calls" if calls else choice.finish))
        return chunks

    def _read(self, delta: Delta) -> tuple[str, list[ToolCall]]:
        """Content, and at the end the calls."""
        if self._reader is None:
            return delta.text, []
        text = self._reader.push(delta.text)
        if delta.finish is None:
            return text, []
        rest, calls = self._reader.finish()
        return text + rest, calls

    def _chunk(
        self,
        delta: Mapping[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        }


class TextChunks:
    """Of a completion; ``echo`` is what it says before its first token."""

    def __init__(self, index: int, token_text: TokenText, echo: str) -> None:
        self._index, self._token_text = index, token_text
        self._echo, self._offset = echo, len(echo)

    def push(self, delta: Delta, choice: Choice) -> list[dict[str, Any]]:
        """See ``ChoiceChunks``."""
        text, self._echo = self._echo + delta.text, ""
        logprobs = None
        if delta.logprobs:
            logprobs = dump(self._token_text.text_logprobs(delta.logprobs, self._offset))
            self._offset += sum(map(len, logprobs["tokens"]))
        finish = choice.finish if delta.finish is not None else None
        return [{"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish}]
