"""Parties behind Gorgon's own ``/generate/normal`` and ``/generate/medusa``.

Answers come whole: the whole duration is the client's, the time to the first token the server's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gorgon.bench.answer import Answer, Drafts, Load
from gorgon.bench.document import PartyInfo, StepShare
from gorgon.bench.exchange import Exchange, read_json, send
from gorgon.bench.machine import resident_mb
from gorgon.bench.party import ModeSpec
from gorgon.bench.prompts import Prompt


@dataclass(slots=True)
class GenerateParty:
    """One mode of a Gorgon server."""

    info: PartyInfo
    url: str
    mode: ModeSpec
    pid: int | None = None

    def run(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        """See ``Party``."""
        exchanges = asyncio.run(self._ask_all(prompts, load))
        return [_read(prompt, e) for prompt, e in zip(prompts, exchanges, strict=True)]

    def take_step_share(self) -> StepShare | None:
        """Unknown from outside."""
        return None

    def resident_mb(self) -> float | None:
        """See ``Party``."""
        return None if self.pid is None else resident_mb(self.pid)

    async def _ask_all(self, prompts: Sequence[Prompt], load: Load) -> list[Exchange]:
        found: dict[int, Exchange] = {}
        waiting = deque(enumerate(prompts))
        path = "normal" if self.mode.name == "normal" else "medusa"

        async def client() -> None:
            while waiting:
                number, prompt = waiting.popleft()
                body = self._body(prompt, load, number)
                found[number] = await send("POST", f"{self.url}/generate/{path}", body)

        await asyncio.gather(*(client() for _ in range(load.clients)))
        return [found[number] for number in range(len(prompts))]

    def _body(self, prompt: Prompt, load: Load, number: int) -> dict[str, Any]:
        tree = {"tree": [list(path) for path in self.mode.tree]} if self.mode.tree else {}
        return {
            "prompt": prompt.text,
            "max_length": load.length,
            "temperature": float(load.temperature),
            "seed": load.seed + number,
            "ignore_eos": not load.natural,
            "cache_prompt": False,
            **tree,
        }


def _read(prompt: Prompt, exchange: Exchange) -> Answer:
    reply = read_json(exchange)
    ended = exchange.pieces[-1][0]
    first = min(exchange.sent_at + reply["queue_time"] + reply["prefill_time"], ended)
    return Answer(
        prompt=prompt,
        started=exchange.sent_at,
        arrivals=[first, ended],
        text=reply["text"],
        tokens=reply["tokens_generated"],
        prompt_tokens=reply["prompt_tokens"],
        drafts=Drafts(
            steps=reply["steps"],
            drafted=reply["drafted"],
            accepted=reply["accepted"],
            drafted_by_depth=reply["drafted_by_depth"],
            accepted_by_depth=reply["accepted_by_depth"],
        ),
    )
