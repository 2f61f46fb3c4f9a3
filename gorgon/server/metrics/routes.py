"""``/metrics``."""

from __future__ import annotations

import asyncio
import contextlib

from fastapi import APIRouter, Response

from gorgon.engine.worker import Worker
from gorgon.errors import NotReadyError
from gorgon.server.metrics.recorder import CONTENT_TYPE, Recorder
from gorgon.server.metrics.state import read_state


def metrics_router(worker: Worker, recorder: Recorder) -> APIRouter:
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
        return Response(recorder.render(state), media_type=CONTENT_TYPE)

    return router
