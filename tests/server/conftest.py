"""A running server on the default model, over real sockets, shared by the API's tests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import uvicorn

from gorgon.config import EngineSettings, ServerSettings
from gorgon.server.app import Service, create_app


@dataclass(frozen=True)
class Running:
    """A server with its address."""

    service: Service
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def model(self) -> str:
        return self.service.openai.card.id

    def wait_idle(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while self.service.worker.num_open or self.service.worker.engine.has_work:
            assert time.monotonic() < deadline, "the engine is not idle"
            time.sleep(0.02)
        self.service.worker.inspect(lambda engine: engine.check_integrity()).result(30)


@contextlib.contextmanager
def serving(engine: EngineSettings | None = None, **settings: Any) -> Iterator[Running]:
    """Serve until the block ends; then no request may be left, and no cell lost."""
    app = create_app(engine or EngineSettings(threads=1), ServerSettings(port=0, **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    service: Service = app.state.service
    try:
        while not server.started:
            time.sleep(0.01)
        service.worker.wait_loaded(120)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(service, f"http://127.0.0.1:{port}")
        yield running
        running.wait_idle()
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="package")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running
