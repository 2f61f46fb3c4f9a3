"""Parties behind an OpenAI-compatible API: our server, llama-server and anything else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gorgon.bench.answer import Answer, Drafts, Load
from gorgon.bench.document import PartyInfo, StepShare
from gorgon.bench.exchange import Exchange, read_events, send
from gorgon.bench.machine import resident_mb
from gorgon.bench.prompts import Prompt
from gorgon.errors import BenchError

Event = Mapping[str, Any]


@dataclass(slots=True)
class HttpParty:
    """Asks ``url`` + ``/v1/chat/completions``, streaming.

    ``fields`` go into every request, ``fixed_fields`` into those whose answers shall not end
    before their full length.
    """

    info: PartyInfo
    url: str
    model: str = "default"
    fields: Mapping[str, Any] = field(default_factory=dict)
    fixed_fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None
    read_drafts: Callable[[Event], Drafts | None] = lambda event: None

    def run(self, prompts: Sequence[Prompt], load: Load) -> list[Answer]:
        """See ``Party``."""
        exchanges = asyncio.run(self._ask_all(prompts, load))
        return [self._read(p, e) for p, e in zip(prompts, exchanges, strict=True)]

    def take_step_share(self) -> StepShare | None:
        """Unknown from outside."""
        return None

    def resident_mb(self) -> float | None:
        """See ``Party``."""
        return None if self.pid is None else resident_mb(self.pid)

    async def _ask_all(self, prompts: Sequence[Prompt], load: Load) -> list[Exchange]:
        found: dict[int, Exchange] = {}
        waiting = deque(enumerate(prompts))

        async def client() -> None:
            while waiting:
                number, prompt = waiting.popleft()
                body = self._body(prompt, load, number)
                url = f"{self.url}/v1/chat/completions"
                found[number] = await send("POST", url, body, self.headers)

        await asyncio.gather(*(client() for _ in range(load.clients)))
        return [found[number] for number in range(len(prompts))]

    def _body(self, prompt: Prompt, load: Load, number: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": load.length_of(prompt),
            "temperature": load.temperature,
            "seed": load.seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
            **({} if load.natural else self.fixed_fields),
        }

    def _read(self, prompt: Prompt, exchange: Exchange) -> Answer:
        arrivals, parts = [], []
        tokens = prompt_tokens = 0
        drafts = Drafts()
        for at, event in read_events(exchange):
            if text := _text_of(event):
                arrivals.append(at)
                parts.append(text)
            if usage := event.get("usage"):
                tokens, prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
            drafts = self.read_drafts(event) or drafts
        if not arrivals:
            raise BenchError(f"{self.info.name} gave no text for prompt '{prompt.id}'")
        return Answer(
            prompt=prompt,
            started=exchange.sent_at,
            arrivals=arrivals,
            text="".join(parts),
            tokens=tokens or len(arrivals),
            prompt_tokens=prompt_tokens,
            drafts=drafts,
        )


def _text_of(event: Event) -> str:
    choices = event.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def llama_server_drafts(event: Event) -> Drafts | None:
    """From the ``timings`` of llama-server's last event."""
    timings = event.get("timings")
    if not timings or "draft_n" not in timings:
        return None
    drafted, accepted = timings["draft_n"], timings["draft_n_accepted"]
    return Drafts(timings["predicted_n"] - accepted, drafted, accepted)


def gorgon_drafts(event: Event) -> Drafts | None:
    """From the ``speculation`` of our server's last event."""
    stats = event.get("speculation")
    if not stats:
        return None
    names = (field.name for field in fields(Drafts))
    return Drafts(**{name: stats[name] for name in names})
