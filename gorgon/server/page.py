"""The page at ``/``: static files of our own, under a policy that lets nothing else in.

Knows no model and no request: the page itself asks ``/ready`` and ``/live``.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask every time; an unchanged file is answered with 304
}


def page_router() -> APIRouter:
    """The routes of the page and its files; they need no key, and hold no secret."""
    router = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=STATIC)

    async def send(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    @router.get("/")
    async def page(request: Request) -> Response:
        return await send("index.html", request)

    @router.get("/static/{name}")
    async def static(name: str, request: Request) -> Response:
        return await send(name, request)

    return router
