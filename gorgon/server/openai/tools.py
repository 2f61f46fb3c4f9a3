"""Tool calls: how a model writes them, as a grammar and back into calls.

Knows two ways, told by the chat template: ``<tool_call>{"name", "arguments"}</tool_call>`` of
Hermes and Qwen, and the bare ``{"name", "parameters"}`` of Llama 3.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gorgon.errors import RequestError
from gorgon.server.json_schema import Grammar, literal
from gorgon.server.openai.bodies import ChatRequest, Function, NamedTool
from gorgon.server.openai.messages import FunctionCall, ToolCall
from gorgon.server.text import ChatPrompt


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A call is ``begin``, the JSON that follows, and ``end``."""

    begin: str
    arguments: str
    end: str

    def body(self, name: str, arguments: str) -> str:
        """What follows ``begin``, as a GBNF expression; ``arguments`` is a rule."""
        quoted = literal(json.dumps(name))
        opening = "" if self.begin.endswith(":") else '"{" ws "\\"name\\":"'
        key = literal(json.dumps(self.arguments) + ":")
        end = f" ws {literal(self.end)}" if self.end else ""
        return f'ws {opening} ws {quoted} "," ws {key} ws {arguments} ws "}}"{end}'


HERMES = ToolFormat("<tool_call>", "arguments", "</tool_call>")
LLAMA = ToolFormat('{"name":', "parameters", "")


def tool_format(chat: ChatPrompt) -> ToolFormat | None:
    """How a model with this template calls tools; None if it cannot."""
    if "tools" not in chat.variables:
        return None
    if HERMES.begin in chat.source:
        return HERMES
    return LLAMA if '"parameters"' in chat.source else None


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request: their grammar, and what it waits for (None: from the start)."""

    format: ToolFormat
    grammar: str
    trigger: str | None


def tool_use(body: ChatRequest, chat: ChatPrompt) -> ToolUse | None:
    """What ``body`` asks for; None without tools or with ``tool_choice`` none.

    Raises:
        RequestError: when the model has no tools, or the choice is not among them.
    """
    if not body.tools or body.tool_choice == "none":
        return None
    form = tool_format(chat)
    if form is None:
        raise RequestError("this model's chat template has no tools; leave them out", "tools")
    functions = _chosen([tool.function for tool in body.tools], body.tool_choice)
    is_forced = body.tool_choice not in (None, "auto")
    parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    grammar = _grammar(form, functions, is_forced=is_forced, parallel=parallel)
    return ToolUse(form, grammar, None if is_forced else form.begin)


def _chosen(functions: Sequence[Function], choice: Any) -> Sequence[Function]:
    if not isinstance(choice, NamedTool):
        return functions
    chosen = [function for function in functions if function.name == choice.function.name]
    if not chosen:
        raise RequestError(
            f"tool_choice names '{choice.function.name}', which is not among the tools",
            "tool_choice",
        )
    return chosen


def _grammar(
    form: ToolFormat, functions: Sequence[Function], *, is_forced: bool, parallel: bool
) -> str:
    grammar = Grammar()
    calls = []
    for i, function in enumerate(functions):
        schema = function.parameters or {"type": "object", "additionalProperties": False}
        rule = grammar.add(schema, f"tools.{i}.function.parameters")
        calls.append(form.body(function.name, rule))
    call = grammar.rule("call", " | ".join(calls))
    begin = literal(form.begin)
    more = f" (ws {begin} {call})*" if parallel and form.end else ""
    return grammar.text(f"{begin} {call}{more}" if is_forced else f"{call}{more}")


class ToolCallReader:
    """Text in; content out, with the calls in it kept for the end.

    Text that may be the beginning of a call is held back.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        self._in_call = False

    def push(self, text: str) -> str:
        """The content that ``text`` releases."""
        self._held += text
        if self._in_call:
            return ""
        before, found, _ = self._held.partition(self._form.begin)
        if found:
            self._in_call, self._held = True, self._held[len(before) :]
            return before.rstrip()
        safe = len(self._held) - self._num_suspect()
        content, self._held = self._held[:safe], self._held[safe:]
        return content

    def _num_suspect(self) -> int:
        begin = self._form.begin
        for length in range(min(len(begin) - 1, len(self._held)), 0, -1):
            if self._held.endswith(begin[:length]):
                return length
        return 0

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Content that was held back in vain, and the calls; text that is no call is content."""
        if not self._in_call:
            return self._held, []
        calls = [self._read(part) for part in self._parts()]
        if all(call is not None for call in calls):
            return "", [call for call in calls if call is not None]
        return self._held, []

    def _parts(self) -> list[str]:
        if not self._form.end:
            return [self._held]
        parts = self._held.split(self._form.begin)[1:]
        return [part.removesuffix("\n").partition(self._form.end)[0] for part in parts]

    def _read(self, text: str) -> ToolCall | None:
        try:
            call = json.loads(text)
            name, arguments = call["name"], call[self._form.arguments]
        except (ValueError, KeyError, TypeError):
            return None
        if not isinstance(name, str):
            return None
        function = FunctionCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=function)
