"""Clients that wrap OpenAI's, where they are installed (langchain-openai, litellm)."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Running

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend


@pytest.fixture(autouse=True)
def _sockets_left_open() -> Iterator[None]:
    """Are collected here, where the warning about them is ignored."""
    yield
    gc.collect()


@pytest.fixture
def chain(server: Running) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(
        model=server.model,
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_completion_tokens=12,
        max_retries=0,
        extra_body={"speculation": {"mode": "medusa"}},
    )


def test_langchain_asks_streams_and_counts(chain: Any) -> None:
    answer = chain.invoke("List three colours.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 12
    assert "".join(chunk.text for chunk in chain.stream("List three colours.")) == answer.content
    assert asyncio.run(chain.ainvoke("List three colours.")).content == answer.content


def test_langchain_gets_what_a_schema_describes(chain: Any) -> None:
    schema = {
        "title": "person",
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wide = chain.model_copy(update={"max_tokens": 100})
    person = wide.with_structured_output(schema, method="json_schema").invoke("Who are you?")
    assert person.keys() == {"name", "age"}


def test_litellm_asks_and_streams(server: Running) -> None:
    litellm = pytest.importorskip("litellm")
    call: dict[str, Any] = {
        "model": f"openai/{server.model}",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": "List three colours."}],
        "temperature": 0,
        "max_tokens": 12,
    }
    answer = litellm.completion(**call)
    text = answer.choices[0].message.content
    assert text
    assert answer.usage.completion_tokens == 12
    chunks = litellm.completion(**call, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    document = litellm.completion(
        **(call | {"max_tokens": 200}), response_format={"type": "json_object"}
    )
    if document.choices[0].finish_reason == "stop":
        json.loads(document.choices[0].message.content)
    assert (
        litellm.text_completion(
            **{k: v for k, v in call.items() if k != "messages"}
            | {"model": f"text-completion-openai/{server.model}", "prompt": "One, two"}
        )
        .choices[0]
        .text
    )
