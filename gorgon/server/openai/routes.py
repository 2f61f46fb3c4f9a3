"""Routes of ``/v1``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from gorgon.config import ServerSettings
from gorgon.server.events import answered, streamed
from gorgon.server.openai import answers
from gorgon.server.openai.api import OpenAi
from gorgon.server.openai.bodies import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from gorgon.server.openai.fields import GenerationFields
from gorgon.server.openai.job import Job
from gorgon.server.preparation import prepared

T = TypeVar("T")
Answer = TypeVar("Answer", answers.ChatAnswer, answers.TextAnswer)

logger = logging.getLogger("gorgon.server")

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
    router.include_router(_answering(openai, settings))
    router.include_router(_describing(openai))
    return router


def _answering(openai: Callable[[], OpenAi], settings: ServerSettings) -> APIRouter:
    """Chats and completions."""
    router = APIRouter()

    async def generate(
        request: Request,
        body: ChatRequest | CompletionRequest,
        whole: Callable[[OpenAi, Job], Awaitable[Answer]],
    ) -> Response | Answer:
        _note(request, body, settings)
        api = openai()
        job = await _prepared(request, lambda: api.job(body))
        if body.stream:
            return await streamed(api.stream(job), request)
        reply = await answered(whole(api, job), request)
        return reply if isinstance(reply, Response) else _noted(request, reply)

    def _noted(request: Request, reply: Answer) -> Answer:
        request.state.facts |= {
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
        }
        if settings.log_prompts:
            logger.info("answer %s", reply.model_dump_json())
        return reply

    @router.post("/v1/chat/completions", response_model=answers.ChatAnswer, responses=_STREAM)
    async def chat_completions(request: Request, body: ChatRequest) -> Any:
        """Continue a chat; with ``stream`` as server-sent events."""
        return await generate(request, body, OpenAi.chat)

    @router.post("/v1/completions", response_model=answers.TextAnswer, responses=_STREAM)
    async def completions(request: Request, body: CompletionRequest) -> Any:
        """Continue a text as it stands, or several; with ``stream`` as server-sent events."""
        return await generate(request, body, OpenAi.complete)

    return router


def _describing(openai: Callable[[], OpenAi]) -> APIRouter:
    """The model and its tokens."""
    router = APIRouter()

    @router.get("/v1/models", response_model=answers.ModelList)
    async def models() -> answers.ModelList:
        """The served model."""
        return answers.ModelList(data=[openai().card])

    @router.get("/v1/models/{model}", response_model=answers.ModelCard)
    async def model(model: str) -> answers.ModelCard:
        """The served model by its name."""
        api = openai()
        api.check_model(model)
        return api.card

    @router.post("/tokenize", response_model=answers.TokenizeAnswer)
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a chat as the model sees it."""
        api = openai()
        return await _written(request, lambda: api.tokenize(body))

    @router.post("/detokenize", response_model=answers.DetokenizeAnswer)
    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        api = openai()
        return await _written(request, lambda: api.detokenize(body))

    return router


async def _prepared(request: Request, work: Callable[[], T]) -> T:
    return await prepared(len(await request.body()), work)


async def _written(request: Request, work: Callable[[], BaseModel]) -> Response:
    """The answer in JSON; written where it is made, because a million tokens take a while."""
    text = await _prepared(request, lambda: work().model_dump_json())
    return Response(text, media_type="application/json")


def _note(request: Request, body: GenerationFields, settings: ServerSettings) -> None:
    """Facts for the log line; the prompt only where the operator wants it."""
    request.state.facts = {"stream": bool(body.stream)}
    if body.user is not None:
        request.state.facts["user"] = body.user
    if settings.log_prompts:
        logger.info("prompt %s", body.model_dump_json(exclude_none=True))
