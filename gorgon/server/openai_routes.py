"""Routes of ``/v1``, ``/tokenize``, ``/detokenize`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from gorgon.config import ServerSettings
from gorgon.engine.worker import Worker
from gorgon.errors import NotReadyError
from gorgon.server import openai_wire as wire
from gorgon.server.events import EventStream, unless_gone
from gorgon.server.metrics import CONTENT_TYPE, Metrics, read_state
from gorgon.server.openai_api import OpenAi

logger = logging.getLogger("gorgon.server")

CLIENT_GONE = 499
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"choices": [{"index": 0, ...}]}\n\ndata: [DONE]\n\n',
            }
        }
    }
}


def openai_router(openai: Callable[[], OpenAi], settings: ServerSettings) -> APIRouter:
    """Everything that speaks OpenAI's protocol; ``openai`` raises while there is no model."""
    router = APIRouter()

    async def answer(request: Request, body: wire.GenerationFields, work: Any) -> Any:
        _note(request, body, settings)
        reply = await unless_gone(work, request)
        if reply is None:
            return Response(status_code=CLIENT_GONE)
        request.state.facts |= {
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
        }
        if settings.log_prompts:
            logger.info("answer %s", reply.model_dump_json())
        return reply

    @router.post("/v1/chat/completions", response_model=wire.ChatAnswer, responses=_STREAM)
    async def chat_completions(request: Request, body: wire.ChatRequest) -> Any:
        """Continue a chat; with ``stream`` as server-sent events."""
        api = openai()
        if body.stream:
            _note(request, body, settings)
            return await _stream(request, api.stream(api.chat_job(body)))
        return await answer(request, body, api.chat(body))

    @router.post("/v1/completions", response_model=wire.TextAnswer, responses=_STREAM)
    async def completions(request: Request, body: wire.CompletionRequest) -> Any:
        """Continue a text as it stands, or several; with ``stream`` as server-sent events."""
        api = openai()
        if body.stream:
            _note(request, body, settings)
            return await _stream(request, api.stream(api.completion_job(body)))
        return await answer(request, body, api.complete(body))

    @router.get("/v1/models", response_model=wire.ModelList)
    async def models() -> wire.ModelList:
        """The served model."""
        return wire.ModelList(data=[openai().card])

    @router.get("/v1/models/{model}", response_model=wire.ModelCard)
    async def model(model: str) -> wire.ModelCard:
        """The served model by its name."""
        api = openai()
        api.check_model(model)
        return api.card

    @router.post("/tokenize", response_model=wire.TokenizeAnswer)
    async def tokenize(body: wire.TokenizeRequest) -> wire.TokenizeAnswer:
        """Token ids of a text, or of a chat as the model sees it."""
        return openai().tokenize(body)

    @router.post("/detokenize", response_model=wire.DetokenizeAnswer)
    async def detokenize(body: wire.DetokenizeRequest) -> wire.DetokenizeAnswer:
        """The text of token ids."""
        return openai().detokenize(body)

    return router


def metrics_router(worker: Worker, metrics: Metrics) -> APIRouter:
    """``/metrics`` in Prometheus' text format."""
    router = APIRouter()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"example": "gorgon_running 0.0\n"}}}},
    )
    async def read_metrics() -> Response:
        """Counters, histograms and gauges of this server."""
        state = None
        with contextlib.suppress(NotReadyError):
            state = await asyncio.wrap_future(worker.inspect(read_state))
        return Response(metrics.render(state), media_type=CONTENT_TYPE)

    return router


def _note(request: Request, body: wire.GenerationFields, settings: ServerSettings) -> None:
    """Facts for the log line; the prompt only where the operator wants it."""
    request.state.facts = {"stream": bool(body.stream)}
    if body.user is not None:
        request.state.facts["user"] = body.user
    if settings.log_prompts:
        logger.info("prompt %s", body.model_dump_json(exclude_none=True))


async def _stream(request: Request, events: AsyncGenerator[bytes, None]) -> Response:
    """A stream that begins with the first event: refusals before it keep their status."""
    first = await unless_gone(anext(events), request)
    if first is None:
        await events.aclose()
        return Response(status_code=CLIENT_GONE)
    return EventStream(first, events)
