"""Every error as OpenAI's clients expect it: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gorgon.errors import GorgonError, NotReadyError, QueueFullError, RequestError
from gorgon.server.schemas import ErrorDetail, ErrorResponse

logger = logging.getLogger("gorgon.server")

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def add_error_handlers(app: FastAPI) -> None:
    """Map every exception to an answer, once."""

    @app.exception_handler(GorgonError)
    async def on_gorgon_error(_request: Request, error: GorgonError) -> JSONResponse:
        return failure(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problem = _deepest(error.errors())
        if problem["type"] == "json_invalid":
            return status_failure(
                400, f"the body is not JSON: {problem['ctx']['error']}", "bad_request"
            )
        parts = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
        field = ".".join(part for part in parts if not _is_variant(part)) or None
        return status_failure(400, _validation_message(field, problem), "bad_request", field)

    @app.exception_handler(HTTPException)
    async def on_http_error(_request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, UnicodeDecodeError):
            return status_failure(400, "the body is not valid UTF-8", "bad_request")
        headers = dict(error.headers) if error.headers else None
        return status_failure(error.status_code, str(error.detail), "http_error", headers=headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        logger.exception("%s %s", request.method, request.url.path, exc_info=error)
        return status_failure(500, "internal error; the server's log has the details", "internal")


def failure(error: GorgonError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to an error of ours."""
    headers = dict(headers or {})
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, NotReadyError):
        headers["Retry-After"] = "5"
    return _answer(error.status, detail(error), headers)


def detail(error: GorgonError) -> ErrorDetail:
    """What the answer says of an error of ours."""
    field = error.field if isinstance(error, RequestError) else None
    return _detail(error.status, str(error), error.code, field)


def status_failure(
    status: int,
    message: str,
    code: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An answer of ``status``."""
    return _answer(status, _detail(status, message, code, field), headers)


def _answer(status: int, detail: ErrorDetail, headers: dict[str, str] | None) -> JSONResponse:
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers)


def _detail(status: int, message: str, code: str, field: str | None) -> ErrorDetail:
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = _TYPES.get(status, kind)
    return ErrorDetail(message=message, type=kind, param=field, code=code)


def _deepest(problems: Any) -> dict[str, Any]:
    """Of the variants of a union the one that fitted furthest names the culprit."""
    first = problems[0]
    related = [p for p in problems if p["loc"][:2] == first["loc"][:2]]
    deepest: dict[str, Any] = max(related, key=lambda p: len(p["loc"]))
    return deepest


def _is_variant(part: str) -> bool:
    """Whether pydantic put it there to name a variant of a union."""
    return "[" in part or part in ("str", "int", "TextPart", "NamedTool", "constrained-str")


def _validation_message(field: str | None, problem: dict[str, Any]) -> str:
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    if field is None:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if problem["type"] == "extra_forbidden":
        return f"unknown field '{field}'; see /docs for the fields there are"
    if problem["type"] == "missing":
        return f"the field '{field}' is missing"
    reason = str(problem["msg"]).removeprefix("Input ")
    return f"{field} {reason[0].lower()}{reason[1:]}"
