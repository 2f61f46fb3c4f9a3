"""The FastAPI application: what is served, what every request passes, start and end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware

from gorgon import __version__
from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.engine import Engine
from gorgon.engine.load import Loaded, load
from gorgon.engine.worker import Worker
from gorgon.errors import NotReadyError
from gorgon.request import Mode
from gorgon.server.docs import add_docs, describe
from gorgon.server.events import answered
from gorgon.server.failures import add_error_handlers
from gorgon.server.generation import Generator
from gorgon.server.guard import BodyLimit, Keys, RequestLog
from gorgon.server.live import live_router
from gorgon.server.metrics.recorder import Recorder
from gorgon.server.metrics.routes import metrics_router
from gorgon.server.openai.api import OpenAi
from gorgon.server.openai.routes import openai_router
from gorgon.server.page import page_router
from gorgon.server.schemas import (
    ERROR_RESPONSES,
    CompareResponse,
    GenerateRequest,
    GenerateResponse,
    StatusResponse,
)

DEFAULT_NAME = "smollm2-135m-instruct"


class Service:
    """A worker with its generator, made when the model is loaded."""

    def __init__(self, settings: EngineSettings, server: ServerSettings) -> None:
        self._settings, self._server = settings, server
        self._loaded: Loaded | None = None
        self._generator: Generator | None = None
        self._openai: OpenAi | None = None
        self.recorder = Recorder()
        self.worker = Worker(self._load, lambda _: self._close(), self.recorder)

    def _load(self) -> Engine:
        self._loaded = load(self._settings)
        self._generator = Generator(self.worker, self._loaded, self._server)
        path = self._settings.model
        name = self._server.model_name or (DEFAULT_NAME if path is None else path.stem)
        heads = self._loaded.backend.num_heads
        max_length = self._loaded.engine.max_length
        self._openai = OpenAi(self._generator, name, heads, max_length)
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

    @property
    def openai(self) -> OpenAi:
        """What serves ``/v1``.

        Raises:
            NotReadyError: while loading, or when loading failed.
        """
        if self._openai is None:
            raise NotReadyError(f"the model is not there ({self.worker.state}); try again later")
        return self._openai

    def status(self) -> StatusResponse:
        """The worker's state and, once loaded, model and heads."""
        state = str(self.worker.state)
        if self._openai is None:
            return StatusResponse(status=state)
        card = self._openai.card
        return StatusResponse(status=state, model=card.id, heads=card.heads)


def create_app(engine: EngineSettings, server: ServerSettings) -> FastAPI:
    """The application; the model loads in the background when the application starts.

    Raises:
        ConfigError: when other machines could connect without a key.
    """
    keys = server.read_keys()
    service = Service(engine, server)

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
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes)
    if keys:
        app.add_middleware(Keys, keys=keys)
    if server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(server.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(RequestLog, observe=service.recorder.observe_answer)
    add_error_handlers(app)
    _add_routes(app, service)
    app.include_router(live_router(lambda: service.generator))
    app.include_router(page_router())
    app.include_router(openai_router(lambda: service.openai, server))
    app.include_router(metrics_router(service.worker, service.recorder))
    add_docs(app)
    describe(app, with_keys=bool(keys))
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    async def generate(request: Request, body: GenerateRequest, mode: Mode) -> Any:
        return await answered(service.generator.generate(body, mode), request)

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
        return await answered(service.generator.compare(body), request)

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
