"""The service on the real default model: answers, comparisons, refusals, clients that leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from gorgon.config import EngineSettings, ServerSettings
from gorgon.server.app import Service, create_app

PROMPT = "List three colours and say why you like them."


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(EngineSettings(threads=1), ServerSettings())
    with TestClient(app) as client:
        service: Service = app.state.service
        service.worker.wait_loaded(120)
        yield client
        wait_idle(service)
        service.worker.engine.check_integrity()


def wait_idle(service: Service) -> None:
    deadline = time.monotonic() + 60
    while service.worker.num_open or service.worker.engine.has_work:
        assert time.monotonic() < deadline, "the engine is not idle"
        time.sleep(0.02)


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["heads"] == 4


def test_plain_decoding_refuses_a_tree(client: TestClient) -> None:
    tree = [[0], [0, 0]]
    reply = client.post("/generate/normal", json={"prompt": "x", "tree": tree})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tree")
    body = {"prompt": "x", "speculation": {"mode": "normal", "tree": tree}, "max_tokens": 2}
    reply = client.post("/v1/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tree")


def test_normal_answers_carry_what_was_promised(client: TestClient) -> None:
    answer = post(client, "/generate/normal", prompt=PROMPT, max_length=16)
    assert answer["tokens_generated"] == 16
    assert answer["acceptance_rate"] is None
    assert answer["speedup_factor"] == 1.0
    assert answer["steps"] == 16
    assert answer["finish_reason"] == "length"
    assert answer["generation_time"] == pytest.approx(
        answer["prefill_time"] + answer["decode_time"]
    )
    assert answer["tokens_per_second"] == pytest.approx(16 / answer["generation_time"])


def test_medusa_gives_the_same_text_in_fewer_steps(client: TestClient) -> None:
    normal = post(client, "/generate/normal", prompt=PROMPT, max_length=48)
    medusa = post(client, "/generate/medusa", prompt=PROMPT, max_length=48, tree=[[0], [0, 0]])
    assert medusa["text"] == normal["text"]
    assert medusa["steps"] < normal["steps"]
    assert medusa["accepted"] == sum(medusa["accepted_by_depth"]) > 0
    assert medusa["drafted"] == sum(medusa["drafted_by_depth"])
    assert medusa["acceptance_rate"] == pytest.approx(100 * medusa["accepted"] / medusa["drafted"])
    assert medusa["speedup_factor"] > 0


def test_sampling_with_a_seed_does_not_depend_on_the_mode(client: TestClient) -> None:
    sampling: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 11, "max_length": 40}
    normal = post(client, "/generate/normal", prompt=PROMPT, **sampling)
    medusa = post(client, "/generate/medusa", prompt=PROMPT, tree=[[0], [1]], **sampling)
    other = post(client, "/generate/normal", prompt=PROMPT, **(sampling | {"seed": 12}))
    assert medusa["text"] == normal["text"] != other["text"]


def test_compare_runs_both_from_scratch(client: TestClient) -> None:
    answer = post(client, "/compare", prompt=PROMPT, max_length=24)
    normal, medusa = answer["normal"], answer["medusa"]
    assert answer["same_text"]
    assert answer["quiet"]
    assert normal["cached_tokens"] == medusa["cached_tokens"] == 0
    assert answer["speedup"] == pytest.approx(
        medusa["tokens_per_second"] / normal["tokens_per_second"]
    )
    assert answer["speedup"] == medusa["speedup_factor"]


def test_compare_says_when_it_was_not_alone(client: TestClient) -> None:
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(post, client, "/generate/normal", prompt=PROMPT, max_length=300)
        time.sleep(0.1)
        answer = post(client, "/compare", prompt=PROMPT, max_length=8)
        other.result()
    assert not answer["quiet"]


def test_typical_acceptance_is_an_option(client: TestClient) -> None:
    answer = post(
        client,
        "/generate/medusa",
        prompt=PROMPT,
        max_length=40,
        temperature=0.8,
        seed=3,
        acceptance="typical",
        tree=[[0], [0, 0], [1]],
    )
    assert answer["accepted"] > 0


def test_a_stop_string_ends_the_text_before_itself(client: TestClient) -> None:
    free = post(client, "/generate/normal", prompt=PROMPT, max_length=48)["text"]
    stop = free.split()[5]
    for path in ("/generate/normal", "/generate/medusa"):
        answer = post(client, path, prompt=PROMPT, max_length=48, stop=[stop])
        assert answer["text"] == free[: free.index(stop)]
        assert answer["finish_reason"] == "stop"


def test_a_second_turn_finds_its_prefix(client: TestClient) -> None:
    post(client, "/generate/normal", prompt=PROMPT + " Be brief.", max_length=4)
    again = post(client, "/generate/normal", prompt=PROMPT + " Be brief.", max_length=4)
    assert again["cached_tokens"] == again["prompt_tokens"] - 1


def test_raw_prompts_go_without_the_chat_template(client: TestClient) -> None:
    answer = post(client, "/generate/normal", prompt="One two three", chat=False, max_length=4)
    assert answer["prompt_tokens"] < 6


def test_many_clients_at_once_all_get_their_answers(client: TestClient) -> None:
    def ask(i: int) -> int:
        path = "/generate/medusa" if i % 2 else "/generate/normal"
        return int(post(client, path, prompt=f"Count to {i}.", max_length=5 + i)["steps"])

    with ThreadPoolExecutor(12) as pool:
        assert all(steps > 0 for steps in pool.map(ask, range(12)))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "x", "max_length": 0}, "max_length"),
        ({"prompt": "x", "max_length": -1}, "max_length"),
        ({"prompt": "x", "max_length": 10**9}, "max_length"),
        ({"prompt": "x", "max_length": "5"}, "max_length"),
        ({"prompt": "x", "max_length": 2.5}, "max_length"),
        ({"prompt": "x", "max_length": True}, "max_length"),
        ({"prompt": "word " * 9000}, "prompt"),
        ({"prompt": "x", "temprature": 1}, "temprature"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "stop": [""]}, "stop.0"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "x", "acceptance": "always"}, "acceptance"),
        ({"prompt": "x", "tree": [[0, 0]]}, "tree"),
        ({"prompt": "x", "tree": [[0], [0]]}, "tree"),
        ({"prompt": "x", "tree": [[0], [0] * 2, [0] * 3, [0] * 4, [0] * 5]}, "tree"),
        ({"prompt": "x", "tree": [[60]]}, "tree"),
    ],
)
def test_bad_fields_are_named(client: TestClient, body: dict[str, Any], field: str) -> None:
    reply = client.post("/generate/medusa", json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == field
    assert field.split(".", maxsplit=1)[0] in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"", "JSON"),
        (b"[1, 2]", "JSON object"),
        (b'"prompt"', "JSON object"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": "\\ud800"}', "unicode"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature"),
        (b"x" * 5_000_000, "larger"),
    ],
)
def test_bad_bodies_are_explained(client: TestClient, body: bytes, message: str) -> None:
    reply = client.post("/compare", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 413)
    assert message in reply.json()["error"]["message"]


def test_unknown_paths_answer_in_the_same_form(client: TestClient) -> None:
    assert client.get("/nothing").json()["error"]["message"] == "Not Found"


def test_a_server_whose_model_cannot_load_is_not_ready(tmp_path: Any) -> None:
    app = create_app(EngineSettings(model=tmp_path / "none.gguf"), ServerSettings())
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        reply = client.post("/generate/normal", json={"prompt": "x"})
        assert reply.status_code == 503
