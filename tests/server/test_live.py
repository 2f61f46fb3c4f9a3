"""The stream behind the page: what it tells about every step, and what it refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from gorgon.config import EngineSettings, ServerSettings
from gorgon.server.app import create_app
from tests.server.fake_page import WORDS, FakePage, serving

TURN = [{"role": "user", "content": "tell me a story"}]


@pytest.fixture(scope="module")
def page() -> Iterator[FakePage]:
    with serving() as page:
        yield page


def events(page: FakePage, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    reply = httpx.post(f"{page.url}/live", json={"messages": TURN} | body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in reply.text.strip().split("\n\n")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


def text_of(story: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(p[0] for name, data in story if name == "step" for p in data["pieces"])


def test_both_modes_write_the_same_and_medusa_in_fewer_steps(page: FakePage) -> None:
    normal = events(page, mode="normal", max_tokens=60, fresh=True)
    medusa = events(page, mode="medusa", max_tokens=60, fresh=True)
    assert text_of(normal) == text_of(medusa)
    assert len(medusa) < len(normal) == 62
    assert [name for name, _ in normal] == ["start", *["step"] * 60, "end"]
    assert medusa[-1][1]["finish"] == "length"
    assert medusa[-1][1]["tokens"] == 60


def test_every_step_tells_its_tree_and_where_each_token_is_from(page: FakePage) -> None:
    story = events(page, tree=[[0], [0, 0], [1]], max_tokens=40)
    known, last_time, kept = None, 0.0, 0
    for data in (data for name, data in story if name == "step"):
        tree, pieces = data["tree"], data["pieces"]
        assert tree["text"][0] == known or known is None
        assert [piece[0] for piece in pieces[:-1]] == [tree["text"][i] for i in tree["path"][1:]]
        assert [piece[1] for piece in pieces] == [*range(1, len(pieces)), 0]
        assert {piece[2] for piece in pieces[:-1]} <= {"heads"}
        assert pieces[-1] == [tree["drawn"], 0, "model"]
        assert len(tree["parents"]) == len(tree["sources"]) == len(tree["survival"])
        assert data["t"] >= last_time
        known, last_time, kept = tree["drawn"], data["t"], kept + len(pieces) - 1
    assert kept == sum(story[-1][1]["accepted_by_depth"]) > 0
    assert story[0][1] | {"plain_step": 0} == {
        "model": "Toy",
        "heads": 4,
        "prompt_tokens": len(TURN[0]["content"]),
        "plain_step": 0,
    }


def test_the_whole_chat_is_the_prompt(page: FakePage) -> None:
    answer = {"role": "assistant", "content": "no"}
    story = events(page, messages=[*TURN, answer, *TURN], max_tokens=3)
    assert story[0][1]["prompt_tokens"] == 2 * len(TURN[0]["content"]) + 2


def test_only_a_fresh_run_ignores_cached_prefixes(page: FakePage) -> None:
    events(page, max_tokens=3)
    assert events(page, max_tokens=3)[-1][1]["cached_tokens"] > 0
    assert events(page, max_tokens=3, fresh=True)[-1][1]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 422),
        ({"max_tokens": 0}, 422),
        ({"mode": "fast"}, 422),
        ({"surprise": 1}, 422),
        ({"mode": "fixed"}, 400),
        ({"tree": [[9]]}, 400),
        ({"max_tokens": 100_000}, 400),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_stream(
    page: FakePage, body: dict[str, Any], status: int
) -> None:
    reply = httpx.post(f"{page.url}/live", json={"messages": TURN} | body)
    assert reply.status_code == status
    assert "event:" not in reply.text


def test_a_reader_who_leaves_ends_the_request(page: FakePage) -> None:
    body = {"messages": TURN, "max_tokens": 3000}
    with httpx.stream("POST", f"{page.url}/live", json=body) as reply:
        next(reply.iter_text())
        assert page.worker.num_open == 1
    wait_idle(page)


def test_a_server_that_stops_says_so_instead_of_an_end() -> None:
    with serving() as page:
        body = {"messages": TURN, "max_tokens": 3000}
        with httpx.stream("POST", f"{page.url}/live", json=body, timeout=60) as reply:
            chunks = reply.iter_text()
            text = next(chunks)
            page.worker.stop()
            text += "".join(chunks)
    assert "event: end" not in text
    assert '"code":"not_ready"' in text.strip().rpartition("event: error")[2]


def wait_idle(page: FakePage) -> None:
    deadline = time.monotonic() + 60
    while page.worker.num_open or page.worker.engine.has_work:
        assert time.monotonic() < deadline, "the request goes on"
        time.sleep(0.01)


def test_words_of_the_model_arrive_whole(page: FakePage) -> None:
    story = events(page, max_tokens=20)
    assert all(p[0] in WORDS for name, data in story if name == "step" for p in data["pieces"])


def test_the_application_serves_page_and_stream() -> None:
    client = TestClient(create_app(EngineSettings(), ServerSettings()))  # not started: not ready
    reply = client.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    again = client.get("/static/page.js", headers={"If-None-Match": "x"})
    assert again.headers["content-type"].startswith("text/javascript")
    unchanged = client.get("/static/page.js", headers={"If-None-Match": again.headers["etag"]})
    assert unchanged.status_code == 304
    for name in ("nothing.js", "..%2Fpage.py", "%2e%2e%2fapp.py"):
        assert client.get(f"/static/{name}").status_code == 404
    refused = client.post("/live", json={"messages": TURN})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "not_ready"
