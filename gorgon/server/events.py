"""Server-sent events, and clients that leave before their answer is complete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gorgon.errors import GorgonError

T = TypeVar("T")

_CLIENT_GONE = 499  # nginx's; nobody reads it but the log

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def unless_gone(work: Awaitable[T], request: Request) -> T | None:
    """Await ``work``, or cancel it and give None as soon as the client is gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(request.receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _end(task, gone)


async def answered(work: Awaitable[T], request: Request) -> T | Response:
    """What ``work`` gives; a status for the log once the client is gone."""
    answer = await unless_gone(work, request)
    return Response(status_code=_CLIENT_GONE) if answer is None else answer


async def streamed(events: AsyncGenerator[bytes, None], request: Request) -> Response:
    """A stream that begins with its first event: refusals before it keep their status."""
    first = await unless_gone(anext(events), request)
    if first is None:
        await events.aclose()
        return Response(status_code=_CLIENT_GONE)
    return EventStream(first, events)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, GorgonError):
                await task


class EventStream(Response):
    """Sends each event at once; closes ``events`` as soon as the client leaves.

    Args:
        first: an event that is known already: by then the request was accepted, so that refusals
            still have a status of their own.
        events: the others.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._first, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_wait_gone(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _end(sending, gone)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
