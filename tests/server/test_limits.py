"""Limits over real sockets: queue, time, prompt, choices, draining and TLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gorgon.bench.servers import free_port
from gorgon.config import EngineSettings
from tests.server.conftest import Running, serving
from tests.tiny import engine_settings

LONG = 30_000  # tokens: many seconds, whatever the machine


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    engine_settings(folder, context=32_768)  # also of those that start a process of their own
    return folder


def engine(files: Path, **settings: Any) -> EngineSettings:
    return engine_settings(files, context=32_768, **settings)


def endless(**fields: Any) -> dict[str, Any]:
    """A body whose answer takes until somebody ends it; ids 1 and 2 would end the text."""
    body: dict[str, Any] = {"prompt": "x", "max_tokens": LONG, "temperature": 0}
    return body | {"logit_bias": {"1": -100, "2": -100}} | fields


@contextlib.contextmanager
def busy(server: Running) -> Iterator[None]:
    """While an answer is being written."""
    url, body = f"{server.url}/v1/completions", endless(stream=True)
    with httpx.stream("POST", url, json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        yield
    server.wait_idle()


def post(server: Running, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    body = {"prompt": "x", "max_tokens": 2} | body
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def event(line: str) -> dict[str, Any]:
    """What a line of a stream says."""
    said: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return said


def test_who_waits_too_long_is_sent_away(files: Path) -> None:
    with serving(engine(files, max_running=1, max_queue_time=0.2)) as server, busy(server):
        for stream in (False, True):
            reply = post(server, stream=stream)
            assert reply.status_code == 429
            assert error_of(reply)["code"] == "queue_full"
            assert int(reply.headers["retry-after"]) >= 1


def test_a_full_queue_sends_away_at_once(files: Path) -> None:
    settings = engine(files, max_running=1, max_waiting=1)
    with serving(settings) as server, ThreadPoolExecutor(1) as pool, busy(server):
        second = pool.submit(post, server)
        deadline = time.monotonic() + 30
        while server.service.worker.num_open < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        reply = post(server)
        assert reply.status_code == 429
        assert "1 requests are waiting" in error_of(reply)["message"]
        text = httpx.get(f"{server.url}/metrics").text
        assert 'gorgon_requests_total{outcome="refused"} 1.0' in text
        assert "gorgon_waiting 1.0" in text
    assert second.result().status_code == 200


def test_what_takes_too_long_is_ended(files: Path) -> None:
    with serving(engine(files), request_timeout=0.4) as server:
        reply = post(server, **endless())
        assert reply.status_code == 504
        assert error_of(reply)["code"] == "timeout"
        server.wait_idle()
        reply = post(server, **endless(stream=True))
        assert reply.status_code == 200
        *_, last, done = reply.text.strip().split("\n\n")
        assert done == "data: [DONE]"
        error = event(last)["error"]
        assert (error["code"], error["type"]) == ("timeout", "server_error")


def test_prompts_and_choices_have_limits(files: Path) -> None:
    with serving(engine(files), max_prompt_tokens=10, max_choices=3) as server:
        for path in ("/v1/completions", "/generate/normal"):
            body = {"prompt": "y" * 40} | ({} if "v1" in path else {"max_tokens": None})
            body = {name: value for name, value in body.items() if value is not None}
            reply = httpx.post(f"{server.url}{path}", json=body)
            assert reply.status_code == 400
            assert "this server takes 10" in error_of(reply)["message"]
        assert post(server, prompt="y").status_code == 200
        assert post(server, n=3).status_code == 200
        for fields, param in (({"n": 4}, "n"), ({"prompt": ["a", "b"], "n": 2}, "prompt")):
            reply = post(server, **fields)
            assert reply.status_code == 400
            assert error_of(reply)["param"] == param
            assert "at most 3" in error_of(reply)["message"]


# -- a process of its own --------------------------------------------------------------------------


@contextlib.contextmanager
def starting(files: Path, stderr: int, *options: str, **environment: str) -> Iterator[Any]:
    """``gorgon serve`` as a process."""
    command = [sys.executable, "-m", "gorgon.cli", "serve", str(files / "tiny.gguf")]
    command += ["--heads", str(files / "tiny.medusa.gguf"), *options]
    settings = {
        "GORGON_NUM_CELLS": "32768",
        "GORGON_THREADS": "1",
        "GORGON_MEASURE_SECONDS": "0.2",
        "GORGON_PROFILE_FOLDER": str(files),
        "PYTHONUNBUFFERED": "1",
    }
    server = subprocess.Popen(
        command,
        env=os.environ | settings | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


@contextlib.contextmanager
def process(files: Path, *options: str, **environment: str) -> Iterator[tuple[Any, str]]:
    """``gorgon serve`` with its address."""
    with starting(files, subprocess.DEVNULL, "--port", "0", *options, **environment) as server:
        ready = next(line for line in server.stdout if "is ready at" in line)
        found = re.search(r"ready at (\S+)", ready)
        assert found is not None
        yield server, found[1]


def read(url: str, body: dict[str, Any], begun: threading.Event) -> list[str]:
    """The events of a stream."""
    events = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as reply:
        for line in filter(None, reply.iter_lines()):
            events.append(line)
            begun.set()
    return events


def test_sigterm_lets_running_answers_finish_and_no_new_one_in(files: Path) -> None:
    body = endless(max_tokens=4000, stream=True, stream_options={"include_usage": True})
    begun = threading.Event()
    with process(files) as (server, url), ThreadPoolExecutor(1) as pool:
        stream = pool.submit(read, url, body, begun)
        assert begun.wait(60)
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):  # it may be done already
            while (ready := httpx.get(f"{url}/ready")).status_code == 200:
                time.sleep(0.01)
            assert ready.json()["status"] == "draining"
            reply = httpx.post(f"{url}/v1/completions", json={"prompt": "x"})
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) > 0
        *_, usage, done = stream.result(120)
        assert done == "data: [DONE]"
        assert event(usage)["usage"]["completion_tokens"] == 4000
        assert server.wait(60) == 0


def test_sigterm_lets_both_runs_of_a_comparison_finish(files: Path) -> None:
    """It comes during the first run; the second one is let in all the same."""
    body = {"prompt": "x", "max_length": 3000, "ignore_eos": True}
    with process(files) as (server, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/compare", json=body, timeout=120)
        while "gorgon_running 1.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        reply = answer.result(120)
        assert reply.status_code == 200, reply.text
        assert reply.json()["medusa"]["tokens_generated"] == 3000
        assert server.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_loading_at_once(number: signal.Signals, files: Path, tmp_path: Path) -> None:
    """While step times are measured, for a minute: the address answers, the model is not there."""
    settings = {"GORGON_MEASURE_SECONDS": "60", "GORGON_PROFILE_FOLDER": str(tmp_path)}
    port, began = free_port(), time.monotonic()
    url = f"http://127.0.0.1:{port}/ready"
    with starting(files, subprocess.STDOUT, "--port", str(port), **settings) as server:
        while not_there(url):
            time.sleep(0.05)
        assert httpx.get(url).json()["status"] == "loading"
        server.send_signal(number)
        said, _ = server.communicate(timeout=40)
    assert server.returncode == 128 + number
    assert time.monotonic() - began < 60
    assert said.splitlines()[-1].endswith(f"{number.name}: ended while the model was loading")
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def not_there(url: str) -> bool:
    """Whether nobody listens yet."""
    try:
        httpx.get(url)
    except httpx.ConnectError:
        return True
    return False


def test_the_grace_time_ends(files: Path) -> None:
    begun = threading.Event()
    with (
        process(files, GORGON_SERVER_DRAIN_SECONDS="0.3") as (server, url),
        ThreadPoolExecutor(1) as pool,
    ):
        stream = pool.submit(read, url, endless(stream=True), begun)
        assert begun.wait(60)
        server.send_signal(signal.SIGTERM)
        *_, last, done = stream.result(60)
        assert event(last)["error"]["code"] == "not_ready"
        assert done == "data: [DONE]"
        assert server.wait(60) == 0


def test_tls_by_certificate_files(files: Path) -> None:
    certificate, key = files / "certificate.pem", files / "key.pem"
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    where = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*openssl.split(), *names, *where], check=True, capture_output=True)
    options = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--api-key", "k"]
    with process(files, *options) as (_, url):
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(verify=trusted, headers={"Authorization": "Bearer k"}) as client:
            reply = client.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2})
            assert reply.status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
