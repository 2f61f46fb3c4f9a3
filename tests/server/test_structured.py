"""What a schema describes is what comes out: parsed and validated, with drafts, at any temperature.

Every fifth schema by default; ``ALL_SCHEMAS=1`` for all fifty.
"""

from __future__ import annotations

import json
import os
from typing import Any

import jsonschema
import pytest

from tests.server.conftest import Running
from tests.server.schemas import SCHEMAS

NAMES = list(SCHEMAS) if os.environ.get("ALL_SCHEMAS") else list(SCHEMAS)[2::5]
TREE = {"mode": "fixed", "tree": [[0], [0, 0], [0, 0, 0], [1], [1, 0], [2]]}
# Asked for just any list, a small model writes one without end.
QUESTIONS = {"List": "A linked list: 7, then null."}


def answer(server: Running, name: str, temperature: float, **speculation: Any) -> Any:
    question = QUESTIONS.get(SCHEMAS[name].get("title", ""), "Give me an example in JSON.")
    form = {"name": "example", "schema": SCHEMAS[name], "strict": True}
    create: Any = server.client.chat.completions.create
    return create(
        model=server.model,
        messages=[{"role": "user", "content": question}],
        max_tokens=600,
        temperature=temperature,
        seed=5,
        response_format={"type": "json_schema", "json_schema": form},
        extra_body={"speculation": speculation},
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_what_the_schema_describes(
    server: Running, name: str, temperature: float
) -> None:
    reply = answer(server, name, temperature, **TREE)
    (choice,) = reply.choices
    assert choice.finish_reason == "stop", choice.message.content
    jsonschema.validate(
        json.loads(choice.message.content),
        SCHEMAS[name],
        format_checker=jsonschema.FormatChecker(),
    )
    if reply.usage.completion_tokens > 2:
        assert reply.model_extra["speculation"]["drafted"] > 0
