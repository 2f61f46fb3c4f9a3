"""Tool calls as models write them: forced and free, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gorgon.config import EngineSettings
from gorgon.errors import RequestError
from gorgon.llama import gbnf
from gorgon.server.openai.bodies import ChatRequest
from gorgon.server.openai.tools import HERMES, LLAMA, ToolCallReader, tool_format, tool_use
from gorgon.server.text import ChatPrompt
from tests.server.conftest import Running, serving
from tests.server.test_text import ByteVocabulary

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall tools as <tool_call>{{ tools | tojson }}"
    "</tool_call>\n<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 10},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather in Paris?"}]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path: Path = tmp_path_factory.mktemp("templates") / "tools.jinja"
    path.write_text(TEMPLATE)
    with serving(EngineSettings(threads=1, num_cells=1024), chat_template=str(path)) as running:
        yield running


def ask(server: Running, **fields: Any) -> Any:
    body: dict[str, Any] = {"model": server.model, "messages": ASK, "max_tokens": 80, "seed": 1}
    create: Any = server.client.chat.completions.create
    return create(**(body | {"tools": [WEATHER, CLOCK]} | fields))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_named_tool_is_called_with_arguments_of_its_schema(
    caller: Running, temperature: float
) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = ask(caller, tool_choice=choice, temperature=temperature).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather"
    assert 1 <= arguments["days"] <= 7
    assert len(arguments["city"]) <= 10
    assert answer.message.content is None


def test_a_stream_carries_calls_and_none_of_their_text(caller: Running) -> None:
    chunks = list(
        ask(caller, tool_choice="required", stream=True, temperature=0, parallel_tool_calls=False)
    )
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert len(calls) == 1
    assert calls[0].function.name in ("weather", "clock")
    assert isinstance(json.loads(calls[0].function.arguments), dict)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_without_a_call_the_text_is_the_answer(caller: Running) -> None:
    for choice in ("auto", "none"):
        answer = ask(caller, tool_choice=choice, temperature=0, max_tokens=8).choices[0]
        assert answer.message.content or answer.message.tool_calls


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": ASK, "tools": [WEATHER, CLOCK]} | fields)


def test_the_template_tells_the_format() -> None:
    llama = '{{ tools }} "parameters" {{ messages }}'
    assert tool_format(ChatPrompt(ByteVocabulary(), TEMPLATE)) is HERMES
    assert tool_format(ChatPrompt(ByteVocabulary(), llama)) is LLAMA
    assert tool_format(ChatPrompt(ByteVocabulary(), "{{ messages }}")) is None
    for template in (TEMPLATE, llama):
        for choice in ("auto", "required"):
            use = tool_use(request(tool_choice=choice), ChatPrompt(ByteVocabulary(), template))
            assert use is not None
            assert (use.trigger is None) == (choice == "required")
            gbnf.check(use.grammar)
    wrong = request(tool_choice={"type": "function", "function": {"name": "none"}})
    with pytest.raises(RequestError, match="not among"):
        tool_use(wrong, ChatPrompt(ByteVocabulary(), TEMPLATE))


def test_calls_are_read_back_from_pieces() -> None:
    text = (
        'Sure. <tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>{"name": "b", "arguments": {}}</tool_call>'
    )
    for size in (1, 3, 7, len(text)):
        reader = ToolCallReader(HERMES)
        content = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
        rest, calls = reader.finish()
        assert content.strip() == "Sure."
        assert rest == ""
        assert [call.function.name for call in calls] == ["a", "b"]
        assert calls[0].function.arguments == '{"x": 1}'


def test_what_is_no_call_stays_text() -> None:
    for text in ("a < b", "<tool_call", "<tool_call>not JSON</tool_call>"):
        reader = ToolCallReader(HERMES)
        assert reader.push(text) + reader.finish()[0] == text
    reader = ToolCallReader(LLAMA)
    assert reader.push('{"name": "a", "parameters": {"x": []}}') == ""
    assert reader.finish()[1][0].function.arguments == '{"x": []}'
