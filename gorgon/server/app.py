"""The FastAPI application: routes, error mapping, start and end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gorgon import __version__
from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.engine import Engine
from gorgon.engine.load import Loaded, load
from gorgon.engine.worker import Worker
from gorgon.errors import GorgonError, NotReadyError, QueueFullError, RequestError
from gorgon.request import Mode
from gorgon.server.generation import Generator, unless_gone
from gorgon.server.live import live_router
from gorgon.server.page import page_router
from gorgon.server.schemas import (
    ERROR_RESPONSES,
    CompareResponse,
    ErrorDetail,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    StatusResponse,
)

logger = logging.getLogger("gorgon.server")

CLIENT_GONE = 499


class Service:
    """A worker with its generator, made when the model is loaded."""

    def __init__(self, settings: EngineSettings, chat_template: str | None = None) -> None:
        self._settings, self._chat_template = settings, chat_template
        self._loaded: Loaded | None = None
        self._generator: Generator | None = None
        self.worker = Worker(self._load, lambda _: self._close())

    def _load(self) -> Engine:
        self._loaded = load(self._settings)
        self._generator = Generator(self.worker, self._loaded, self._chat_template)
        return self._loaded.engine

    def _close(self) -> None:
        if self._loaded is not None:
            self._loaded.backend.close()

    @property
    def generator(self) -> Generator:
        """What serves requests.

        Raises:
            NotReadyError: while loading, or when loading failed.
        """
        if self._generator is None:
            raise NotReadyError(f"the model is not there ({self.worker.state}); try again later")
        return self._generator

    def status(self) -> StatusResponse:
        """The worker's state and, once loaded, model and heads."""
        state = str(self.worker.state)
        if self._loaded is None:
            return StatusResponse(status=state)
        backend = self._loaded.backend
        return StatusResponse(status=state, model=backend.model.info.name, heads=backend.num_heads)


def create_app(engine: EngineSettings, server: ServerSettings) -> FastAPI:
    """The application; the model loads in the background when the application starts."""
    service = Service(engine, server.chat_template)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = FastAPI(
        title="Gorgon",
        version=__version__,
        summary="Medusa heads on llama.cpp",
        lifespan=lifespan,
        responses=ERROR_RESPONSES,
    )
    app.state.service = service
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes)
    _add_error_handlers(app)
    _add_routes(app, service)
    app.include_router(live_router(lambda: service.generator))
    app.include_router(page_router())
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    async def generate(request: Request, body: GenerateRequest, mode: Mode) -> Any:
        answer = await unless_gone(service.generator.generate(body, mode), request.is_disconnected)
        return answer or Response(status_code=CLIENT_GONE)

    @app.post("/generate/normal", response_model=GenerateResponse)
    async def generate_normal(request: Request, body: GenerateRequest) -> Any:
        """Continue a prompt one token per forward pass."""
        return await generate(request, body, "normal")

    @app.post("/generate/medusa", response_model=GenerateResponse)
    async def generate_medusa(request: Request, body: GenerateRequest) -> Any:
        """Continue a prompt with drafts of the Medusa heads."""
        return await generate(request, body, "medusa")

    @app.post("/compare", response_model=CompareResponse)
    async def compare(request: Request, body: GenerateRequest) -> Any:
        """Continue a prompt in both modes, one after the other."""
        answer = await unless_gone(service.generator.compare(body), request.is_disconnected)
        return answer or Response(status_code=CLIENT_GONE)

    @app.get("/health", response_model=StatusResponse)
    async def health() -> StatusResponse:
        """Whether the process lives."""
        return StatusResponse(status="ok")

    @app.get("/ready", response_model=StatusResponse)
    async def ready(response: Response) -> StatusResponse:
        """200 only when a request would be served."""
        status = service.status()
        if status.status != "ready":
            response.status_code = 503
        return status


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(GorgonError)
    async def on_gorgon_error(_request: Request, error: GorgonError) -> JSONResponse:
        field = error.field if isinstance(error, RequestError) else None
        headers = {}
        if isinstance(error, QueueFullError):
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        return _error(error.status, str(error), error.code, field, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _error(400, f"the body is not JSON: {first['ctx']['error']}", "bad_request")
        field = ".".join(str(part) for part in first["loc"] if part != "body") or None
        message = _validation_message(field, first)
        return _error(400, message, "bad_request", field)

    @app.exception_handler(HTTPException)
    async def on_http_error(_request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, UnicodeDecodeError):
            return _error(400, "the body is not valid UTF-8", "bad_request")
        return _error(error.status_code, str(error.detail), "http_error")

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        logger.exception("%s %s", request.method, request.url.path, exc_info=error)
        return _error(500, "internal error; the server's log has the details", "internal_error")


def _validation_message(field: str | None, problem: dict[str, Any]) -> str:
    if field is None:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if problem["type"] == "extra_forbidden":
        return f"unknown field '{field}'; see /docs for the fields there are"
    if problem["type"] == "missing":
        return f"the field '{field}' is missing"
    reason = str(problem["msg"]).removeprefix("Input ")
    return f"{field} {reason[0].lower()}{reason[1:]}"


def _error(
    status: int,
    message: str,
    code: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    detail = ErrorDetail(message=message, type=kind, param=field, code=code)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers)


class BodyLimit:
    """Refuses bodies beyond ``max_bytes``, announced or not, before anything reads them."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body counted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            refusal = _error(
                413, f"the body is larger than {self._max_bytes:,} bytes", "body_too_large"
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            return None
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return body
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                return None
        return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives ``body`` first and then what comes after it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


__all__ = ["Service", "create_app"]
