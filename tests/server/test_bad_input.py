"""Whatever is sent to /generate and /compare, the answer names the fault and serving goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from gorgon.config import ServerSettings
from gorgon.server.app import create_app
from tests.tiny import engine_settings

PATHS = ["/generate/normal", "/generate/medusa", "/compare"]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("tiny")
    settings = engine_settings(folder)
    app = create_app(settings, ServerSettings())
    with TestClient(app) as client:
        app.state.service.worker.wait_loaded(120)
        yield client


def expect_alive(client: TestClient, path: str) -> None:
    reply = client.post(path, json={"prompt": "red", "max_length": 3})
    assert reply.status_code == 200, reply.text


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "word " * 3000}, "prompt"),
    ({"prompt": "x", "max_length": 0}, "max_length"),
    ({"prompt": "x", "max_length": -3}, "max_length"),
    ({"prompt": "x", "max_length": 10**6}, "max_length"),
    ({"prompt": "x", "max_length": 10**30}, "max_length"),
    ({"prompt": "x", "max_length": True}, "max_length"),
    ({"prompt": "x", "max_length": 2.0}, "max_length"),
    ({"prompt": "x", "max_length": "8"}, "max_length"),
    ({"prompt": "x", "max_tokens": 8}, "max_tokens"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "seed": -1}, "seed"),
    ({"prompt": "x", "seed": 2**32}, "seed"),
    ({"prompt": "x", "top_k": -1}, "top_k"),
    ({"prompt": "x", "top_k": 2**31}, "top_k"),
    ({"prompt": "x", "stop": "end"}, "stop"),
    ({"prompt": "x", "tree": [[]]}, "tree"),
    ({"prompt": "x", "tree": "0;1"}, "tree"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "field"), FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named(
    client: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert str(error["param"]).split(".", maxsplit=1)[0] == field
    assert field in error["message"]
    expect_alive(client, path)


BODIES = [
    b"",
    b"{",
    b"null",
    b"17",
    b"[]",
    b'"prompt"',
    b"prompt=x",
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"prompt": "x", "max_length": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_a_bad_body_is_refused(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers=JSON)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]
    expect_alive(client, path)


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_body_is_refused(client: TestClient, path: str) -> None:
    reply = client.post(path, content=b" " * 5_000_000, headers=JSON)
    assert reply.status_code == 413
    expect_alive(client, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_another_content_type_is_refused(client: TestClient, path: str, kind: str) -> None:
    reply = client.post(path, content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    assert reply.status_code in (400, 415)
    assert "json" in reply.json()["error"]["message"].lower()


@pytest.mark.parametrize("path", PATHS)
def test_another_method_is_refused(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 405


@pytest.mark.parametrize("acceptance", ["lossless", "typical"])
def test_next_to_no_temperature_is_none(client: TestClient, acceptance: str) -> None:
    body: dict[str, Any] = {"prompt": "red", "max_length": 20, "acceptance": acceptance}
    texts = [
        client.post("/generate/medusa", json=body | {"temperature": t, "tree": [[0], [1]]}).json()
        for t in (0.0, 1e-300, 1e-40, 1e-6)
    ]
    assert len({text["text"] for text in texts}) == 1
