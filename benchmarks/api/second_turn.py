"""How soon the second turn of a long chat begins, against the first: its prompt is in the cache.

    python -m benchmarks.api.second_turn --tokens 1500 --repeats 5

Serves the embedded model in this process, over a real socket. Each repeat is a chat of its own:
a user's turn of the given length, a streamed answer, then a short question. Time to first token is
from sending the request to the first event with text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import httpx

from benchmarks.api.crowd import serving

Messages = list[dict[str, str]]


async def turn(
    client: httpx.AsyncClient, messages: Messages, tokens: int
) -> tuple[float, str, dict[str, Any]]:
    """Seconds to the first text, the text, the usage."""
    body = {
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, text = time.perf_counter(), 0.0, ""
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk["usage"] or usage
            for choice in chunk["choices"]:
                text += choice["delta"].get("content", "")
            if text and not first:
                first = time.perf_counter() - began
    return first, text, usage


async def chat(client: httpx.AsyncClient, number: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first text of both turns."""
    sentence = f"Chapter {number}: the lamp was lit at dusk and burned until the morning came. "
    count = 1
    while True:
        messages: Messages = [{"role": "user", "content": sentence * count + "Sum it up."}]
        reply = await client.post("/tokenize", json={"messages": messages})
        if reply.json()["count"] >= tokens:
            break
        count += 1 + (tokens - reply.json()["count"]) // 40
    first, text, usage = await turn(client, messages, 48)
    messages += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "Say it in one word."},
    ]
    second, _, later = await turn(client, messages, 16)
    print(
        f"chat {number}: prompt {usage['prompt_tokens']} tokens, {first * 1e3:.0f} ms; then "
        f"{later['prompt_tokens']} of which {later['prompt_tokens_details']['cached_tokens']} "
        f"cached, {second * 1e3:.0f} ms: {second / first:.1%}",
        flush=True,
    )
    return first, second


async def run(tokens: int, repeats: int) -> float:
    async with serving() as (_, url), httpx.AsyncClient(base_url=url, timeout=120) as client:
        await turn(client, [{"role": "user", "content": "Hello"}], 8)
        times = [await chat(client, number, tokens) for number in range(1, repeats + 1)]
    return statistics.median(second / first for first, second in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    share = asyncio.run(run(options.tokens, options.repeats))
    print(f"second turn begins in {share:.1%} of the first one's time (median)")
    assert share <= 0.2


if __name__ == "__main__":
    main()
