"""Running the application under uvicorn."""

from __future__ import annotations

import logging
import threading

import uvicorn

from gorgon.config import EngineSettings, ServerSettings
from gorgon.engine.worker import Worker
from gorgon.server.app import Service, create_app

logger = logging.getLogger("gorgon.server")


def run(engine: EngineSettings, server: ServerSettings) -> None:
    """Serve until interrupted.

    Raises:
        GorgonError: when the model could not be loaded.
    """
    app = create_app(engine, server)
    service: Service = app.state.service
    uvicorn_server = uvicorn.Server(
        uvicorn.Config(app, host=server.host, port=server.port, log_level="warning")
    )
    watcher = threading.Thread(
        target=_announce, args=(service.worker, uvicorn_server, server), daemon=True
    )
    watcher.start()
    uvicorn_server.run()
    if service.worker.error is not None:
        raise service.worker.error


def _announce(worker: Worker, uvicorn_server: uvicorn.Server, server: ServerSettings) -> None:
    """Say where to go once the model is loaded; stop the server if it could not be."""
    try:
        worker.wait_loaded()
    except Exception:
        uvicorn_server.should_exit = True
        return
    url = f"http://{server.host}:{server.port}"
    print(
        f"\nGorgon is ready at {url} (API: {url}/docs)\n\n"
        f"  curl {url}/compare -H 'Content-Type: application/json' \\\n"
        '    -d \'{"prompt": "Why is the sky blue?", "max_length": 64}\'\n',
        flush=True,
    )
