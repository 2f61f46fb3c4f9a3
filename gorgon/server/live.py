"""``POST /live``: one generation step by step, with every tree that was tried, for the page.

Server-sent events: ``start`` once, ``step`` for each forward pass that gave tokens, then ``end``
or ``error``. What is wrong from the beginning is answered with a status and JSON, as everywhere.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from gorgon import request as engine_request
from gorgon.errors import GorgonError, NotReadyError
from gorgon.llama.model import Model
from gorgon.request import (
    MAX_SEED,
    MAX_TOP_K,
    Acceptance,
    FinishReason,
    Mode,
    RequestStats,
    SamplingParams,
    SpeculationParams,
    StepResult,
    TreeTrace,
)
from gorgon.server.events import streamed
from gorgon.server.generation import Generator
from gorgon.server.preparation import prepared
from gorgon.server.schemas import TreePath
from gorgon.server.text import Message, TextStream


class LiveMessage(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class LiveRequest(BaseModel):
    """A chat, and how to write its next turn."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                    "mode": "medusa",
                    "max_tokens": 64,
                }
            ]
        },
    )

    messages: Annotated[list[LiveMessage], Field(min_length=1, max_length=1024, fail_fast=True)]
    mode: Mode = "medusa"
    max_tokens: Annotated[int, Field(ge=1, description="new tokens, at most")] = 256
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    acceptance: Acceptance = "lossless"
    tree: Annotated[list[TreePath] | None, Field(max_length=63)] = None
    fresh: Annotated[
        bool, Field(description="compute the whole prompt, so that two runs can be compared")
    ] = False

    def for_engine(self, prompt_ids: list[int]) -> engine_request.Request:
        """The request that asks the engine for this, trees included."""
        return engine_request.Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(prompt_ids),
            max_tokens=self.max_tokens,
            sampling=SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                seed=self.seed,
            ),
            speculation=SpeculationParams(
                mode=self.mode,
                tree=None if self.tree is None else tuple(tuple(path) for path in self.tree),
                acceptance=self.acceptance,
            ),
            reuse_prefix=not self.fresh,
            want_tree=True,
        )


def live_router(generator: Callable[[], Generator]) -> APIRouter:
    """The route; ``generator`` raises ``NotReadyError`` while there is none."""
    router = APIRouter()

    @router.post(
        "/live",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def live(request: Request, body: LiveRequest) -> Any:
        """Write the next turn of a chat, step by step, as server-sent events.

        `start`: `model`, `heads`, `prompt_tokens`, `plain_step` (seconds of a one-token step).
        `step`: `t` (seconds since the request), `pieces` (of every token its text, its depth and
        who drafted it; depth 0 was drawn by the model, d was guessed d tokens ahead), `tree`
        (`parents`, `text`, `sources` and `survival` of all nodes, `path` of the kept ones, `drawn`
        the model's own token after them). `end`: `finish` and the statistics. `error`: `code` and
        `message`, instead of `end`.
        """
        return await streamed(_events(generator(), body), request)

    return router


async def _events(generator: Generator, body: LiveRequest) -> AsyncGenerator[bytes, None]:
    """All events; an error after the first becomes the last."""
    model = generator.loaded.model
    turns = [Message(message.role, message.content) for message in body.messages]
    size = sum(len(turn.content) for turn in turns)
    request = body.for_engine(await prepared(size, lambda: generator.chat.encode(turns)))
    story = Story(model, time.perf_counter())
    began = False
    try:
        async with contextlib.aclosing(generator.results(request)) as results:
            async for result in results:
                if not began:
                    yield _start(generator, request)
                    began = True
                if result.tokens:
                    yield _event("step", story.step(result))
                if result.finish is FinishReason.CANCELLED:
                    raise NotReadyError("the server is stopping; try again later")
                if result.finish is not None:
                    yield _event("end", story.end(result.finish, result.stats or RequestStats()))
    except GorgonError as error:
        if not began:
            raise
        yield _event("error", {"code": error.code, "message": str(error)})


def _start(generator: Generator, request: engine_request.Request) -> bytes:
    loaded, num_prompt = generator.loaded, len(request.prompt_ids)
    return _event(
        "start",
        {
            "model": loaded.model.info.name,
            "heads": loaded.backend.num_heads,
            "prompt_tokens": num_prompt,
            "plain_step": loaded.plain_step.at(num_prompt),
        },
    )


class Story:
    """Turns step results into what the page shows.

    Args:
        model: for its vocabulary.
        began: ``time.perf_counter()`` when the request was made.
    """

    def __init__(self, model: Model, began: float) -> None:
        self._stream, self._began = TextStream(model), began
        self._label = lru_cache(maxsize=None)(lambda token: label(model, token))

    def step(self, result: StepResult) -> dict[str, Any]:
        """The ``step`` event of a result with tokens."""
        tree = result.tree
        assert tree is not None, "asked for in LiveRequest.for_engine"
        texts = zip(self._stream.push(result.tokens), result.depths, strict=True)
        return {
            "t": round(time.perf_counter() - self._began, 5),
            "pieces": [[text, depth, _source(tree, depth)] for text, depth in texts],
            "tree": self._tree(tree, result.tokens[-1]),
        }

    def end(self, finish: FinishReason, stats: RequestStats) -> dict[str, Any]:
        """The ``end`` event; ``rest`` is text that was held back."""
        return {
            "finish": finish,
            "rest": self._stream.flush(),
            "tokens": self._stream.num_tokens,
            "steps": stats.steps,
            "drafted_by_depth": stats.drafted_by_depth,
            "accepted_by_depth": stats.accepted_by_depth,
            "cached_tokens": stats.cached_tokens,
            "queue_time": stats.queue_time,
            "prefill_time": stats.prefill_time,
            "decode_time": stats.decode_time,
            "quiet": stats.max_batch <= 1,
        }

    def _tree(self, tree: TreeTrace, drawn: int) -> dict[str, Any]:
        return {
            "parents": tree.parents,
            "text": [self._label(token) for token in tree.tokens],
            "sources": tree.sources,
            "survival": [round(survival, 4) for survival in tree.survival],
            "path": tree.path,
            "drawn": self._label(drawn),
        }


def label(model: Model, token: int) -> str:
    """A token as people read it: its text, or the name of a control token."""
    return model.piece(token).decode("utf-8", "replace") or model.control_text(token)


def _source(tree: TreeTrace, depth: int) -> str:
    return tree.sources[tree.path[depth]] if 0 < depth < len(tree.path) else "model"


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
