"""HTTP requests whose replies are only written down while time is measured.

A general client parses every piece as it comes: 0.1 ms and more a piece, which at 1,000 tokens/s
is a tenth of a core taken from the server beside it. Here a piece costs one time stamp and one
append; h11 takes the reply apart when the block is over.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from gorgon.errors import BenchError

TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request with the raw pieces of its reply, each with the time of its arrival."""

    url: str
    sent_at: float
    pieces: list[tuple[float, bytes]]
    connection: h11.Connection


class _Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def send(
    method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Exchange:
    """Send one request and write the reply down until the server closes the connection.

    Raises:
        BenchError: when there is no connection, or no end of the reply.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    connection = h11.Connection(h11.CLIENT)
    raw = _encode(connection, method, parts.path or "/", parts.netloc, body, headers or {})
    context = ssl.create_default_context() if secure else None
    loop = asyncio.get_running_loop()
    try:
        sent_at = time.perf_counter()
        transport, recorder = await loop.create_connection(_Recorder, host, port, ssl=context)
        transport.write(raw)
        await asyncio.wait_for(recorder.closed, TIMEOUT)
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{url} does not answer: {error or 'timeout'}") from error
    transport.close()
    return Exchange(url, sent_at, recorder.pieces, connection)


def _encode(
    connection: h11.Connection,
    method: str,
    path: str,
    host: str,
    body: Any,
    headers: Mapping[str, str],
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": host, "Connection": "close", "Content-Length": str(len(data)), **headers}
    if data:
        fields["Content-Type"] = "application/json"
    request = h11.Request(method=method, target=path, headers=list(fields.items()))
    raw = connection.send(request) or b""
    raw += connection.send(h11.Data(data=data)) or b""
    return raw + (connection.send(h11.EndOfMessage()) or b"")


def read_body(exchange: Exchange) -> list[tuple[float, bytes]]:
    """The body in pieces, each with the time at which its last byte came.

    Raises:
        BenchError: when the reply is damaged or its status is not 200.
    """
    found: list[tuple[float, bytes]] = []
    status = 0
    try:
        for at, data in [*exchange.pieces, (0.0, b"")]:
            exchange.connection.receive_data(data)
            while not isinstance(event := exchange.connection.next_event(), _ENDS):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    found.append((at, bytes(event.data)))
            if not isinstance(event, type) or event is h11.PAUSED:
                break
    except h11.RemoteProtocolError as error:
        raise BenchError(f"{exchange.url} broke off: {error}") from error
    if status != 200:
        text = b"".join(data for _, data in found).decode("utf-8", "replace")
        raise BenchError(f"{exchange.url} answered {status or 'nothing'}: {text[:500]}")
    return found


_ENDS = (type, h11.EndOfMessage, h11.ConnectionClosed)


def read_json(exchange: Exchange) -> Any:
    """The body of a reply that is one JSON value."""
    return json.loads(b"".join(data for _, data in read_body(exchange)))


def read_events(exchange: Exchange) -> list[tuple[float, dict[str, Any]]]:
    """The server-sent events of a reply, each with the time at which it was complete.

    Raises:
        BenchError: when an event is an error.
    """
    events, rest = [], b""
    for at, data in read_body(exchange):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]"):
                event: dict[str, Any] = json.loads(line[5:])
                if "error" in event:
                    raise BenchError(f"{exchange.url} failed: {event['error']}")
                events.append((at, event))
    return events
