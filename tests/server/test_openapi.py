"""The API against its own description: made-up requests get documented answers, and no 5xx.

schemathesis makes the requests from the OpenAPI schema. Some that the schema allows are refused
all the same (a grammar that is none, fields that do not go together), so refusing is never a fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from gorgon.config import EngineSettings, ServerSettings
from gorgon.server.app import create_app
from tests.server.conftest import Running, serving
from tests.tiny import engine_settings

EXAMPLES = int(os.environ.get("API_EXAMPLES", "25"))  # of each operation


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tiny")
    settings = engine_settings(folder)
    with serving(settings, max_new_tokens=16) as running:
        yield running


SCHEMA = schemathesis.openapi.from_dict(create_app(EngineSettings(), ServerSettings()).openapi())
OPERATIONS = {
    found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)
}


def examine(server: Running, label: str, mode: GenerationMode) -> None:
    @hypothesis.given(OPERATIONS[label].as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=EXAMPLES)
    def check(case: Any) -> None:
        reply = case.call(base_url=server.url, timeout=30)
        if reply.status_code != 413:  # no schema tells how large a body is
            case.validate_response(reply, excluded_checks=[positive_data_acceptance])

    check()


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_is_described_gets_described_answers(tiny: Running, label: str) -> None:
    examine(tiny, label, GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("POST")])
def test_what_is_not_described_is_refused_as_described(tiny: Running, label: str) -> None:
    examine(tiny, label, GenerationMode.NEGATIVE)
