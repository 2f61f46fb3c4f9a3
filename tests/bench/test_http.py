"""The client against a server of a few lines: times, text, errors, and its own cost."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gorgon.bench.answer import Drafts, Load
from gorgon.bench.document import PartyInfo
from gorgon.bench.exchange import read_events, read_json, send
from gorgon.bench.openai import HttpParty, gorgon_drafts, llama_server_drafts
from gorgon.bench.prompts import Prompt
from gorgon.bench.servers import LlamaServer, answers, free_port, spec_types, start
from gorgon.errors import BenchError

INFO = PartyInfo(name="peer", kind="openai", version="", settings={})
PROMPT = Prompt("p", "all", "Hello")
FIXED = Load(2, 5, natural=False, temperature=0.0, seed=7)


class Handler(BaseHTTPRequestHandler):
    """Streams five pieces, the usage last; keeps the bodies that it got."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(200, b'{"data": [{"id": "toy"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if body["model"] == "broken":
            self._reply(400, b'{"error": "no such model"}')
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self._events(body["model"]):
            self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _events(self, model: str) -> Iterator[dict[str, Any]]:
        if model == "late":
            yield {"error": {"message": "out of memory"}}
        yield {"choices": [{"delta": {"role": "assistant", "content": None}}]}
        for piece in ("H\u00e9", "l", "l", "o", "!"):
            yield {"choices": [{"delta": {"content": piece}}]}
        yield {
            "choices": [],
            "usage": {"completion_tokens": 9, "prompt_tokens": 4},
            "timings": {"predicted_n": 9, "draft_n": 8, "draft_n_accepted": 4},
        }

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stream_becomes_an_answer(url: str) -> None:
    Handler.bodies.clear()
    party = HttpParty(
        INFO,
        url,
        fields={"top_k": 0},
        fixed_fields={"ignore_eos": True},
        read_drafts=llama_server_drafts,
    )
    answers = party.run([PROMPT, PROMPT, PROMPT], FIXED)
    assert [answer.text for answer in answers] == ["H\u00e9llo!"] * 3
    assert [answer.tokens for answer in answers] == [9] * 3
    sample = answers[0].sample()
    assert 0 < sample.ttft <= sample.duration
    assert (sample.steps, sample.drafted, sample.accepted) == (5, 8, 4)
    assert len(answers[0].gaps) == 4
    assert [body["seed"] for body in sorted(Handler.bodies, key=lambda b: b["seed"])] == [7, 8, 9]
    assert all(body["ignore_eos"] and body["top_k"] == 0 for body in Handler.bodies)


def test_natural_lengths_leave_the_end_to_the_model(url: str) -> None:
    Handler.bodies.clear()
    party = HttpParty(INFO, url, fixed_fields={"ignore_eos": True})
    party.run([PROMPT], Load(1, 5, natural=True, temperature=0.5, seed=0))
    assert "ignore_eos" not in Handler.bodies[0]


@pytest.mark.parametrize(
    ("model", "fault"), [("broken", "answered 400: .*no such"), ("late", "out of memory")]
)
def test_errors_are_told(url: str, model: str, fault: str) -> None:
    with pytest.raises(BenchError, match=fault):
        HttpParty(INFO, url, model=model).run([PROMPT], FIXED)


def test_nobody_there() -> None:
    with pytest.raises(BenchError, match="does not answer"):
        HttpParty(INFO, f"http://127.0.0.1:{free_port()}").run([PROMPT], FIXED)


def test_replies_are_read_when_all_is_over(url: str) -> None:
    exchange = asyncio.run(send("GET", f"{url}/v1/models"))
    assert read_json(exchange) == {"data": [{"id": "toy"}]}
    assert answers(f"{url}/v1/models")
    again = asyncio.run(send("POST", url, {"model": "toy"}))
    times = [at for at, _ in read_events(again)]
    assert times == sorted(times)
    assert times[0] >= again.sent_at


def test_servers_that_do_not_start_show_their_last_words() -> None:
    command = ["sh", "-c", "echo no model here >&2; exit 3"]
    with pytest.raises(BenchError, match="no model here"), start(command, free_port(), "/", {}):
        pass
    with pytest.raises(BenchError, match="cannot start"), start(["/no/such"], 1, "/", {}):
        pass


def test_a_binary_in_this_folder_needs_no_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "peer"
    binary.write_text("#!/bin/sh\necho 'version: 7 (abc)'\necho '--spec-type none,ngram-mod x'\n")
    binary.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    found = LlamaServer.probe(Path("peer"))
    assert (found.path, found.version) == (binary, "7 (abc)")
    assert found.draft_free == ("ngram-mod",)
    with pytest.raises(BenchError, match="cannot run"):
        LlamaServer.probe(Path("no-such-peer"))


def test_what_llama_server_says_about_itself() -> None:
    text = "--spec-type none,draft-simple,ngram-simple,ngram-mod\n      comma-separated list"
    assert spec_types(text) == ("ngram-simple", "ngram-mod")
    assert spec_types("--spec-type [none|ngram-cache|draft]  kind") == ("ngram-cache",)
    assert spec_types("nothing") == ()
    event = {"timings": {"predicted_n": 20, "draft_n": 12, "draft_n_accepted": 8}}
    drafts = llama_server_drafts(event)
    assert drafts is not None
    assert (drafts.steps, drafts.drafted, drafts.accepted) == (12, 12, 8)
    assert llama_server_drafts({"timings": {"predicted_n": 20}}) is None


def test_what_our_server_says_about_its_drafts() -> None:
    stats = {
        **{"steps": 5, "drafted": 12, "accepted": 8, "tokens_per_step": 2.6},
        **{"drafted_by_depth": [8, 4], "accepted_by_depth": [6, 2]},
        **{"drafted_by_source": {"heads": 12}, "accepted_by_source": {"heads": 8}},
    }
    drafts = gorgon_drafts({"usage": {}, "speculation": stats})
    assert drafts == Drafts(5, 12, 8, [8, 4], [6, 2], {"heads": 12}, {"heads": 8})
    assert gorgon_drafts({"usage": {}}) is None
