"""Running the application under uvicorn: start, announcement, draining, end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

import uvicorn

from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.worker import Worker, WorkerState
from gorgon.server import logs
from gorgon.server.app import Service, create_app

logger = logging.getLogger("gorgon.server")

_INTERRUPTED = 128 + signal.SIGINT  # as shells report it
_LAST_WORDS = 5  # seconds for answers on their way after draining


class DrainingServer(uvicorn.Server):
    """On the first signal takes no new requests and lets running ones finish; stops on the second.

    While it drains, new requests are answered with 503 and ``/ready`` says so. While the model
    loads, the first signal ends the process.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, drain_seconds: float) -> None:
        super().__init__(config)
        self._worker, self._drain_seconds = worker, drain_seconds
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See ``uvicorn.Server``."""
        name = signal.Signals(sig).name
        if self._worker.state is WorkerState.LOADING:
            logger.info("%s: ended while the model was loading", name)
            _end(128 + sig)
        if self._deadline is None and self._worker.num_open:
            logger.info("%s: draining, %d requests are open", name, self._worker.num_open)
            self._worker.drain()
            self._deadline = time.monotonic() + self._drain_seconds
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """See ``uvicorn.Server``; called ten times a second."""
        if self._deadline is not None:
            is_late = time.monotonic() > self._deadline
            if is_late or not self._worker.num_open:
                self._worker.stop()
                self.should_exit = True
        return await super().on_tick(counter)


def run(engine: EngineSettings, server: ServerSettings) -> None:
    """Serve until interrupted.

    Raises:
        GorgonError: when the model could not be loaded, or the settings are unsafe.
    """
    logs.set_up(server.log_format)
    app = create_app(engine, server)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        log_level="warning",
        log_config=None,
        timeout_graceful_shutdown=_LAST_WORDS,
        ssl_certfile=server.tls_certificate,
        ssl_keyfile=server.tls_key,
    )
    uvicorn_server = DrainingServer(config, service.worker, server.drain_seconds)
    watcher = threading.Thread(
        target=_announce, args=(service.worker, uvicorn_server, server), daemon=True
    )
    watcher.start()
    try:
        uvicorn_server.run()
    finally:
        _end_if_stuck(service.worker)
    if service.worker.error is not None:
        raise service.worker.error


def _end_if_stuck(worker: Worker) -> None:
    """Leave at once while the worker is still inside llama.cpp, which cannot be interrupted."""
    if worker.is_alive:
        _end(_INTERRUPTED)


def _end(code: int) -> NoReturn:
    """Python must not take its libraries down around a thread that runs in them."""
    logging.shutdown()
    os._exit(code)


def _announce(worker: Worker, uvicorn_server: uvicorn.Server, server: ServerSettings) -> None:
    """Say where to go once the model is loaded; stop the server if it could not be."""
    try:
        worker.wait_loaded()
    except Exception:
        uvicorn_server.should_exit = True
        return
    while not uvicorn_server.started:
        if uvicorn_server.should_exit:
            return
        time.sleep(0.05)
    scheme = "http" if server.tls_certificate is None else "https"
    host = f"[{server.host}]" if ":" in server.host else server.host
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]  # of --port 0 the one it got
    url = f"{scheme}://{host}:{port}"
    print(
        f"\nGorgon is ready at {url} (API: {url}/docs)\n\n"
        f"  curl {url}/compare -H 'Content-Type: application/json' \\\n"
        '    -d \'{"prompt": "Why is the sky blue?", "max_length": 64}\'\n',
        flush=True,
    )
