"""What every request passes before a route: its id and log line, its key, the size of its body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gorgon.errors import AuthError
from gorgon.server.failures import failure, status_failure
from gorgon.server.logs import request_id

logger = logging.getLogger("gorgon.server")

OPEN_PATHS = frozenset({"/health", "/ready"})
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")

Observer = Callable[[str, int], None]


class RequestLog:
    """Gives every request an id, answers with it, and writes one line when it is over.

    Args:
        app: what is behind.
        observe: told the path and the status of every answer.
    """

    def __init__(self, app: ASGIApp, observe: Observer) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given.decode() if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        began, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", name.encode())]
                message = {**message, "headers": headers}
            await send(message)

        token = request_id.set(name)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._observe(path, status)
            facts = {
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(time.perf_counter() - began, 4),
                **scope["state"].get("facts", {}),
            }
            level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
            logger.log(level, "request %s", json.dumps(facts), extra={"facts": facts})
            request_id.reset(token)


class Keys:
    """Lets only requests with a key pass: ``Authorization: Bearer KEY``, or a browser's log-in.

    A browser that is asked for a name and a password sends the password with every request to
    this server, so that pages need no key of their own.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        error = AuthError("a valid API key is needed: 'Authorization: Bearer KEY'")
        refusal = failure(error, {"WWW-Authenticate": 'Bearer, Basic realm="gorgon"'})
        await refusal(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS:
            return True
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        given = _digest(_key_of(header))
        # All are compared, each in constant time, so that time tells nothing.
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _key_of(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


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
            refusal = status_failure(
                413, f"the body is larger than {self._max_bytes:,} bytes", "body_too_large"
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            return None
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                return None
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives ``body`` first and then what comes after it."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
