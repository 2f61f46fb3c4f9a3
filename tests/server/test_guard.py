"""Keys, limits, refusals and ids, before any model is needed."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from gorgon.config import EngineSettings, ServerSettings
from gorgon.errors import ConfigError
from gorgon.server.app import create_app
from gorgon.server.logs import JsonFormatter

NO_MODEL = EngineSettings(model=Path("/nonexistent.gguf"))


def client(**settings: Any) -> TestClient:
    return TestClient(create_app(NO_MODEL, ServerSettings(**settings)))


def test_a_key_opens_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("from-file\n\n")
    app = client(api_keys=("first", "second"), api_key_file=file)
    for key in ("first", "second", "from-file"):
        headers = {"Authorization": f"Bearer {key}"}
        assert app.get("/openapi.json", headers=headers).status_code == 200
        password = base64.b64encode(f"me:{key}".encode()).decode()
        headers = {"Authorization": f"Basic {password}"}
        assert app.get("/docs", headers=headers).status_code == 200
    for wrong in ("", "Bearer", "Bearer firs", "Bearer first2", "Basic !", "first", "Basic Og=="):
        reply = app.get("/metrics", headers={"Authorization": wrong})
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert "Bearer" in reply.headers["www-authenticate"]
    assert app.get("/v1/models").status_code == 401
    assert app.get("/health").status_code == 200


def test_other_machines_need_a_key_unless_told_otherwise() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="api-key"):
            client(host=host)
        client(host=host, api_keys=("k",))
        client(host=host, allow_anonymous=True)
    for host in ("127.0.0.1", "::1", "localhost"):
        client(host=host)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GORGON_SERVER_API_KEYS", "a,b")
    assert ServerSettings().read_keys() == ("a", "b")
    assert "a" not in repr(ServerSettings()).split("api_keys")[-1][:4]
    with pytest.raises(ConfigError, match="api_key_file"):
        ServerSettings(api_key_file=Path("/nonexistent")).read_keys()
    with pytest.raises(ValueError, match="go together"):
        ServerSettings(tls_key=Path("x"))


def test_other_origins_are_refused_by_default() -> None:
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client().options("/v1/models", headers=ask).headers
    allowed = client(cors_origins=("https://a.example",), api_keys=("k",))
    reply = allowed.options("/v1/chat/completions", headers=ask)
    assert reply.headers["access-control-allow-origin"] == "https://a.example"


def test_every_answer_has_an_id() -> None:
    app = client()
    assert len(app.get("/health").headers["x-request-id"]) == 32
    assert app.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    evil = app.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert evil != "a b"


def test_while_there_is_no_model_the_answer_is_503() -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        body = (
            {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
        )
        reply = client().post(path, json=body)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) > 0
    assert client().get("/metrics").status_code == 200


def test_log_lines_hold_facts_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gorgon.server")
    secret = "my secret text"
    client().post("/v1/completions", json={"prompt": secret}, headers={"x-request-id": "r1"})
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert secret not in "".join(lines)
    line = json.loads(lines[-1])
    assert (line["path"], line["status"]) == ("/v1/completions", 503)
