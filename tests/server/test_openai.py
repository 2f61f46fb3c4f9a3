"""The official client against a running server: every field, sync, async and streaming."""

from __future__ import annotations

import asyncio
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import Running

ASK = [{"role": "user", "content": "List three colours and say why you like them."}]
TREE = {"speculation": {"mode": "fixed", "tree": [[0], [0, 0], [0, 0, 0], [1], [1, 0]]}}
PLAIN = {"speculation": {"mode": "normal"}}


def chat(server: Running, **fields: Any) -> Any:
    body: dict[str, Any] = {"model": server.model, "messages": ASK, "temperature": 0.0}
    body |= {"max_tokens": 24} | fields
    return server.client.chat.completions.create(**body)


def complete(server: Running, **fields: Any) -> Any:
    body: dict[str, Any] = {"model": server.model, "prompt": "One, two", "temperature": 0.0}
    body |= {"max_tokens": 8} | fields
    return server.client.completions.create(**body)


def text_of(chunks: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_a_chat_is_answered_with_usage_and_statistics(server: Running) -> None:
    answer = chat(server, extra_body=TREE, user="tester")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24
    stats = answer.model_extra["speculation"]
    assert 0 < stats["accepted"] < stats["drafted"]
    assert stats["tokens_per_step"] == pytest.approx(24 / stats["steps"])
    plain = chat(server, extra_body=PLAIN)
    assert plain.choices[0].message.content == answer.choices[0].message.content
    assert plain.model_extra["speculation"]["drafted"] == 0


def test_a_stream_says_the_same_and_ends_with_usage(server: Running) -> None:
    whole = chat(server)
    chunks = list(chat(server, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_measurements_can_ask_for_full_length_and_no_cached_prompt(server: Running) -> None:
    bias = {str(end): 100 for end in server.service.generator.loaded.model.eog_ids}
    assert chat(server, logit_bias=bias).usage.completion_tokens < 24
    fields = {"ignore_eos": True, "cache_prompt": False}
    usage = chat(server, logit_bias=bias, extra_body=fields).usage
    assert usage.completion_tokens == 24
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_the_wire_ends_with_done(server: Running) -> None:
    body = {"messages": ASK, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_the_async_client_streams_too(server: Running) -> None:
    async def ask() -> tuple[str, str]:
        url = f"{server.url}/v1"
        body: dict[str, Any] = {"model": server.model, "messages": ASK, "max_tokens": 8}
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            create: Any = client.chat.completions.create
            whole = await create(temperature=0, **body)
            stream = await create(temperature=0, stream=True, **body)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return text, whole.choices[0].message.content or ""

    streamed, whole = asyncio.run(ask())
    assert streamed == whole


def test_logprobs_do_not_depend_on_who_guessed(server: Running) -> None:
    def entries(**fields: Any) -> list[Any]:
        answer = chat(server, logprobs=True, top_logprobs=3, **fields)
        return list(answer.choices[0].logprobs.content)

    plain, drafted = entries(extra_body=PLAIN), entries(extra_body=TREE)
    assert [e.token for e in plain] == [e.token for e in drafted]
    for a, b in zip(plain, drafted, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=0.05)
        assert a.logprob == a.top_logprobs[0].logprob  # greedy takes the likeliest
        assert sum(math.exp(top.logprob) for top in a.top_logprobs) <= 1 + 1e-5
        assert bytes(a.bytes).decode("utf-8", "replace") == a.token
    chunks = list(chat(server, logprobs=True, stream=True))
    streamed = [
        e.token
        for c in chunks
        if c.choices and c.choices[0].logprobs
        for e in c.choices[0].logprobs.content
    ]
    assert streamed == [e.token for e in plain]


def test_completions_take_every_form_of_prompt(server: Running) -> None:
    ids = httpx.post(f"{server.url}/tokenize", json={"text": "One, two"}).json()["tokens"]
    text = complete(server).choices[0].text
    assert complete(server, prompt=ids).choices[0].text == text
    several = complete(server, prompt=["One, two", "A, B"], n=2, max_tokens=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    first = several.choices[0].text
    assert first == several.choices[1].text == text[: len(first)] != ""
    assert several.usage.completion_tokens == 4
    assert complete(server, prompt=[ids, ids], echo=True).choices[1].text == "One, two" + text
    assert complete(server, echo=True).choices[0].text == "One, two" + text
    chunks = list(complete(server, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "One, two" + text


def test_completion_logprobs_line_up_with_the_text(server: Running) -> None:
    choice = complete(server, logprobs=2).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


@pytest.mark.parametrize("drafts", [PLAIN, TREE])
def test_a_stop_string_never_shows_in_a_stream(server: Running, drafts: dict[str, Any]) -> None:
    free = chat(server).choices[0].message.content
    stop = free[12:20]
    for count in (1, 16):
        stops = [stop] + [f"never {i}" for i in range(count - 1)]
        chunks = list(chat(server, stop=stops, stream=True, logprobs=True, extra_body=drafts))
        assert text_of(chunks) == free[: free.index(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert chat(server, stop=stop).choices[0].message.content == free[: free.index(stop)]


@pytest.mark.parametrize("letters", ["😀🚀", "日本語", "é"])
def test_streams_hold_whole_characters_only(server: Running, letters: str) -> None:
    grammar = f"root ::= [{letters}]{{8}}"
    chunks = list(chat(server, temperature=1, seed=4, stream=True, extra_body={"grammar": grammar}))
    text = text_of(chunks)
    assert len(text) == 8
    assert set(text) <= set(letters)


def test_seeds_and_choices(server: Running) -> None:
    def texts(**fields: Any) -> list[str]:
        answer = chat(server, temperature=1.0, max_completion_tokens=12, max_tokens=None, **fields)
        return [choice.message.content for choice in answer.choices]

    three = texts(n=3, seed=7)
    assert len(set(three)) > 1
    assert texts(n=3, seed=7) == three
    assert texts(seed=8)[0] == three[1]


def test_choices_share_the_prompt_they_continue(server: Running) -> None:
    def prompt_tokens_computed() -> float:
        text = httpx.get(f"{server.url}/metrics").text
        series = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        found = series["gorgon_prefix_hit_tokens_total"]
        return float(series["gorgon_prompt_tokens_total"]) - float(found)

    server.wait_idle()
    before = prompt_tokens_computed()
    prompt = "Nobody has asked for this text before. " * 20
    answer = complete(server, prompt=prompt, n=6, temperature=1.0, seed=1, max_tokens=4)
    server.wait_idle()
    computed = prompt_tokens_computed() - before
    assert answer.usage.prompt_tokens > 100
    assert computed == answer.usage.prompt_tokens + 5  # and each choice its root


def test_sampling_fields_matter(server: Running) -> None:
    free = chat(server).choices[0].message.content
    changes: list[dict[str, Any]] = [
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 3.0}},
        {"logit_bias": {"198": -100, "33": 50}},
    ]
    for fields in changes:
        assert chat(server, **fields).choices[0].message.content != free
    greedy: list[dict[str, Any]] = [
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "extra_body": {"top_k": 1}},
        {"temperature": 1.0, "extra_body": {"min_p": 1.0}},
    ]
    for fields in greedy:
        assert chat(server, **fields).choices[0].message.content == free


def test_roles_are_text_to_the_model(server: Running) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "developer", "content": "Answer now."},
    ]
    assert chat(server, messages=messages).choices[0].message.content
    tokens = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()
    assert "".join(tokens["pieces"]).count("<|im_start|>") == 6


def test_json_object_is_json(server: Running) -> None:
    answer = chat(
        server, temperature=1.0, seed=1, max_tokens=400, response_format={"type": "json_object"}
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert answer.choices[0].message.content.lstrip().startswith("{")


def test_models_and_tokens(server: Running) -> None:
    (model,) = server.client.models.list().data
    assert server.client.models.retrieve(model.id).id == model.id == server.model
    with pytest.raises(openai.NotFoundError):
        chat(server, model="gpt-4o")
    text = "Grüße, 日本 😀 <|im_end|>"
    tokens = httpx.post(f"{server.url}/tokenize", json={"text": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert back["text"] == text
    refusal = httpx.post(f"{server.url}/detokenize", json={"tokens": [10**6]})
    assert refusal.status_code == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": []}, "functions"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 2**31}, "top_k"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"n": 99}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"grammar": "root ::= root"}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"speculation": {"mode": "magic"}}, "speculation.mode"),
        ({"speculation": {"acceptance": "typical"}, "grammar": 'root ::= "a"'}, "acceptance"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        body = {"messages": ASK, "stream": stream} | fields
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"].startswith(param)


def test_who_hangs_up_frees_everything(server: Running) -> None:
    server.wait_idle()
    url = f"{server.url}/v1/chat/completions"
    body = {"messages": ASK, "max_tokens": 4000, "temperature": 0, "logit_bias": {"2": -100}}
    with httpx.stream("POST", url, json=body | {"stream": True}) as reply:
        next(reply.iter_lines())
    server.wait_idle(20)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, timeout=1.0)
    server.wait_idle(20)


def test_many_streams_at_once_are_all_complete(server: Running) -> None:
    def ask(i: int) -> bool:
        stream = chat(server, messages=[{"role": "user", "content": f"Count to {i}."}], stream=True)
        for number, _chunk in enumerate(chunks := iter(stream)):
            if i % 5 == 0 and number == 2:
                stream.close()
                return True
        return next(chunks, None) is None

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(ask, range(20)))
    server.wait_idle()


def test_a_second_turn_is_served_from_the_cache(server: Running) -> None:
    filler = "The quick brown fox jumps over the lazy dog. " * 40
    messages = [{"role": "user", "content": filler + "What is this?"}]
    first = chat(server, messages=messages, max_tokens=16)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Are you sure?"},
    ]
    second = chat(server, messages=messages, max_tokens=4)
    details = second.usage.prompt_tokens_details
    assert details.cached_tokens > 0.9 * first.usage.prompt_tokens


def test_metrics_count_what_happened(server: Running) -> None:
    before = time.monotonic()
    chat(server, extra_body=TREE)
    text = httpx.get(f"{server.url}/metrics").text
    assert time.monotonic() - before < 600
    for series in (
        'gorgon_requests_total{outcome="length"}',
        'gorgon_http_responses_total{path="/v1/chat/completions",status="200"}',
        'gorgon_drafted_tokens_total{depth="3"}',
        'gorgon_accepted_tokens_by_source_total{source="heads"}',
        'gorgon_step_seconds_estimate{tokens="4"}',
        "gorgon_time_to_first_token_seconds_bucket",
        "gorgon_time_per_output_token_seconds_count",
        "gorgon_batch_requests_sum",
        "gorgon_prefix_hit_tokens_total",
        "gorgon_cells_free",
        "gorgon_waiting 0.0",
    ):
        assert series in text


def test_the_documentation_needs_nobody_else(server: Running) -> None:
    page = httpx.get(f"{server.url}/docs").text
    assert "//cdn" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert httpx.get(f"{server.url}/docs/assets/{asset}").status_code == 200
    schema = httpx.get(f"{server.url}/openapi.json").json()
    for path, methods in schema["paths"].items():
        if "post" in methods:
            ref = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert schema["components"]["schemas"][ref.rsplit("/", 1)[1]]["examples"], path
