"""Errors as readers get them: RFC 9457 problem documents that say what happened and what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import asyncpg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from flywheel.errors import TransientError
from flywheel.log import get_logger
from services.gateway import store
from services.gateway.cursor import CursorError

_log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
#: When a reader may come again after the database was away, in seconds.
RETRY_AFTER_S = 2

Handler = Callable[[Request, Exception], Awaitable[Response]]


class NotFoundError(Exception):
    """What was asked for does not exist; the message says where to look for what does."""


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return a problem document; ``detail`` tells a person what to do, ``more`` is for programs."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    handlers: list[tuple[type[Exception], Handler]] = [
        (NotFoundError, _not_found),
        (store.ArchivedError, _archived),
        (CursorError, _cursor),
        (RequestValidationError, _invalid),
        (HTTPException, _http),
        (Exception, _unexpected),
    ]
    # Listed, because Starlette chooses a handler by class and "transient" is a property of the error.
    for kind in (TransientError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        handlers.append((kind, _database))
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


async def _not_found(request: Request, error: Exception) -> Response:
    return problem(404, str(error), instance=request.url.path)


async def _archived(request: Request, error: Exception) -> Response:
    return problem(410, str(error), instance=request.url.path)


async def _cursor(request: Request, error: Exception) -> Response:
    return problem(422, f"{error}. Leave out `cursor` to begin at the first page.", instance=request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [{"where": ".".join(map(str, fault["loc"])), "what": fault["msg"]} for fault in error.errors()]
    detail = "; ".join(f"{fault['where']}: {fault['what']}" for fault in faults[:5])
    return problem(422, f"{detail}. See /docs for what this address takes.", instance=request.url.path, errors=faults)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {404: "There is nothing at this address. See /docs for what there is."}.get(
        error.status_code, str(error.detail)
    )
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, detail, headers=headers, instance=request.url.path)


async def _database(request: Request, error: Exception) -> Response:
    why = store.away(error)
    if why is None:
        return await _unexpected(request, error)
    _log.warning("database away", path=request.url.path, error=repr(error))
    return problem(
        503,
        f"{why} Try again in {RETRY_AFTER_S} s.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
        instance=request.url.path,
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("unexpected error", path=request.url.path, error=repr(error), exc_info=error)
    return problem(500, "This is a fault of the gateway; its log says more.", instance=request.url.path)
