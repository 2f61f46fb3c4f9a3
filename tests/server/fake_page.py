"""The page and its stream in front of a made-up model: a real engine, worker and HTTP server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from gorgon.backend import BatchRow, Output
from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.engine import Engine
from gorgon.engine.load import Loaded, PlainStep
from gorgon.engine.worker import Worker
from gorgon.errors import GorgonError
from gorgon.server.generation import Generator
from gorgon.server.live import live_router
from gorgon.server.page import page_router
from gorgon.speculation.cost import StepCost
from tests.engine.driver import flat_cost
from tests.fake import FakeBackend, ToyModel

WORDS = ("\n", *(f" {a}{b}" for a in "bdgklmnprst" for b in ("a", "olu", "en")))[:32]


class FakeVocabulary:
    """Words of the toy model; every character of a prompt is one token."""

    bos = eos = None
    info = SimpleNamespace(
        name="Toy", chat_template="{{ messages | map(attribute='content') | join }}"
    )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [ord(character) % len(WORDS) for character in text]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return WORDS[token].encode()

    def control_text(self, token: int) -> str:
        return f"<{token}>"


class SlowBackend(FakeBackend):
    """Takes its time for each step, so that there is something to watch and to stop."""

    def decode(self, rows: Sequence[BatchRow]) -> Output:
        time.sleep(0.004)
        return super().decode(rows)


class SteadyCost(StepCost):
    """A step costs what it costs on paper, whatever else this machine is doing."""

    def observe(
        self, num_tokens: int, context: float, seconds: float, num_requests: int = 1
    ) -> None:
        pass


@dataclass
class FakePage:
    """A running server."""

    url: str
    worker: Worker


@contextlib.contextmanager
def serving() -> Iterator[FakePage]:
    """Serve until the end of the block; every cell must be free by then."""
    backend = SlowBackend(ToyModel(len(WORDS)), num_cells=4096, max_position=4096, agreement=0.7)
    cost = SteadyCost(flat_cost().times, backend.max_rows)
    engine = Engine(backend, EngineSettings(prefill_chunk=16, prefill_batch=48), cost)
    worker = Worker(lambda: engine, lambda _: None)
    loaded = Loaded(engine, cast(Any, backend), cast(Any, FakeVocabulary()), PlainStep(cost))
    app = _make_app(Generator(worker, loaded, ServerSettings()))
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    worker.start()
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield FakePage(f"http://127.0.0.1:{port}", worker)
    server.should_exit = True
    thread.join()
    worker.stop()
    engine.check_integrity()
    assert backend.num_open_samplers == 0


def _make_app(generator: Generator) -> FastAPI:
    app = FastAPI()
    app.include_router(live_router(lambda: generator))
    app.include_router(page_router())

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        return {"status": "ready", "model": "Toy", "heads": 4}

    @app.exception_handler(GorgonError)
    async def on_error(_request: Request, error: GorgonError) -> JSONResponse:
        detail = {"message": str(error), "code": error.code, "param": getattr(error, "field", None)}
        return JSONResponse({"error": detail}, error.status)

    return app
