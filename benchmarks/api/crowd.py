"""Many streaming clients, some of which hang up: nothing may leak, the others must be complete.

    python -m benchmarks.api.crowd --clients 200 --hang-ups 0.2

Serves the embedded model in this process, over real sockets. Each client asks its own question;
those that hang up do so after a random number of events, or before the first. At the end: every
other client has all of its tokens and a ``[DONE]``, the engine's books are right, all cells and
ids that are not cached prefixes are free, and no task, open request or socket is left. A second
crowd must not need more memory than the first.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.engine import Engine
from gorgon.server.app import Service, create_app

TOPICS = ("a lighthouse", "the sea", "red apples", "old maps", "a clock", "snow", "tea", "bridges")


def resident_mib() -> float:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    found = next(line for line in lines if line.startswith("VmRSS"))
    return int(found.split()[1]) / 1024


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Service, str]]:
    app = create_app(EngineSettings(), ServerSettings())
    config = uvicorn.Config(app, port=0, log_level="warning", backlog=512)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    service: Service = app.state.service
    while not server.started:
        await asyncio.sleep(0.05)
    await asyncio.to_thread(service.worker.wait_loaded)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield service, f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


async def ask(client: httpx.AsyncClient, i: int, tokens: int, patience: int | None) -> str:
    """How one client fared; ``patience`` is after how many events it hangs up."""
    body = {
        "messages": [{"role": "user", "content": f"Write {i} words about {TOPICS[i % 8]}."}],
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": i,
        "logit_bias": {"2": -100},  # no early end, so that complete is a number
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = []
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                return f"status {reply.status_code}"
            async for line in reply.aiter_lines():
                if line:
                    events.append(line)
                if patience is not None and len(events) >= patience:
                    return "hung up"
    except httpx.HTTPError as error:
        return "hung up" if patience == 0 else type(error).__name__
    *_, usage, done = events
    is_whole = done == "data: [DONE]" and (
        json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == tokens
    )
    return "complete" if is_whole else "cut short"


async def crowd(url: str, clients: int, hang_ups: float, tokens: int, seed: int) -> Counter[str]:
    chance = random.Random(seed)
    leavers = set(chance.sample(range(clients), round(clients * hang_ups)))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(i: int) -> str:
            if i not in leavers:
                return await ask(client, i, tokens, None)
            if chance.random() < 0.25:  # leaves while it still waits
                with_limit = ask(client, i, tokens, 0)
                try:
                    return await asyncio.wait_for(with_limit, chance.uniform(0.01, 2.0))
                except TimeoutError:
                    return "hung up"
            return await ask(client, i, tokens, chance.randint(1, tokens // 2))

        return Counter(await asyncio.gather(*map(one, range(clients))))


async def settle(service: Service) -> None:
    """Until the engine is idle, which it must be soon after the last client."""
    deadline = time.monotonic() + 5
    while service.worker.num_open or service.worker.engine.has_work:
        assert time.monotonic() < deadline, "requests are left that nobody waits for"
        await asyncio.sleep(0.02)


def books(engine: Engine) -> dict[str, int]:
    """On the engine thread: whose cells and ids are whose, after an integrity check."""
    engine.check_integrity()
    pool = engine.pool
    held = len(pool.prefixes)
    assert pool.num_free_ids == engine.backend.max_sequences - 1, "ids lost"
    assert pool.cells.num_used == pool.num_cached_cells, "cells lost"
    pool.forget_prefixes()
    engine.check_integrity()
    assert pool.cells.num_free == engine.backend.num_cells, "cells lost"
    return {"prefixes": held, "cells free": pool.cells.num_free}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    async with serving() as (service, url):
        await crowd(url, 8, 0.0, 8, 0)  # everything that is made once
        tasks = len(asyncio.all_tasks())
        rounds = []
        for number in range(options.rounds):
            began = time.monotonic()
            outcomes = await crowd(
                url, options.clients, options.hang_ups, options.tokens, options.seed + number
            )
            seconds = time.monotonic() - began
            await settle(service)
            state = await asyncio.wrap_future(service.worker.inspect(books))
            await asyncio.sleep(0.2)
            gc.collect()
            left = len(asyncio.all_tasks()) - tasks
            assert left <= 0, f"{left} tasks are left"
            memory = round(resident_mib(), 1)
            rounds.append(
                {"seconds": round(seconds, 1), **outcomes, **state, "MiB resident": memory}
            )
            print(json.dumps(rounds[-1]), flush=True)
        return {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--hang-ups", type=float, default=0.2, help="share of the clients")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rounds = asyncio.run(run(options))["rounds"]
    leavers = round(options.clients * options.hang_ups)
    for outcome in rounds:
        assert outcome.get("complete") == options.clients - leavers, outcome
        assert outcome.get("hung up") == leavers, outcome
    print("nothing leaked, nobody was cut short")


if __name__ == "__main__":
    main()
