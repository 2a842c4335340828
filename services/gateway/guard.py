"""What every request passes: the token, the metrics, the headers that keep recorded data from acting as code."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flywheel import metrics, tracing
from services.gateway.problems import problem

#: Answered without a token: probes, scrapers, and the style sheet, which holds no data.
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/static/style.css"})

#: Where the scripts of the documentation page are.
VIEWER = "/static/viewer"

#: Nothing recorded may run, load or frame anything. The documentation page, which shows nothing recorded, runs its
#: viewer, which is ours too.
_POLICY = "; ".join(
    ("default-src 'none'", "style-src 'self'", "img-src 'self' data:", "base-uri 'none'", "form-action 'none'",
     "frame-ancestors 'none'")
)  # fmt: skip
_POLICY_DOCS = "; ".join(
    ("default-src 'self'", "script-src 'self' 'unsafe-inline'", "style-src 'self' 'unsafe-inline'",
     "img-src 'self' data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
)  # fmt: skip
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class TokenGuard:
    """Asks for the token, where one is set: as a bearer token, or as the password of a browser's own login form."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._digest = _digest(token) if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or self._digest is None or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        shown = _shown(Headers(scope=scope).get("authorization", ""))
        if shown is not None and hmac.compare_digest(_digest(shown), self._digest):
            return await self._app(scope, receive, send)
        answer = problem(
            401, "Show the token of this gateway: Authorization: Bearer …, or any user name with it as the password.",
            headers={"WWW-Authenticate": 'Bearer realm="flywheel", Basic realm="flywheel", charset="UTF-8"'},
        )  # fmt: skip
        return await answer(scope, receive, send)


class Observer:
    """Measures every request by the template of its route, and sets the protective headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it went."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if traced := tracing.ids():
                    headers["X-Trace-Id"] = traced["trace_id"]
                headers.setdefault("Content-Security-Policy", _POLICY_DOCS if scope["path"] == "/docs" else _POLICY)
            await send(message)

        started = time.perf_counter()
        with metrics.REQUESTS_IN_FLIGHT.track_inprogress():
            try:
                await self._app(scope, receive, noting)
            except BaseException:
                status = 500
                raise
            finally:
                route = _template(scope)
                metrics.REQUESTS.labels(_method(scope), route, str(status)).inc()
                metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started, tracing.exemplar())


def _digest(token: str) -> bytes:
    """Return what is compared: of one length, so that time tells nothing about the token's."""
    return hashlib.sha256(token.encode()).digest()


def _shown(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _template(scope: MutableMapping[str, Any]) -> str:
    """Return the route's template, never the path itself: labels are few and bounded."""
    return getattr(scope.get("route"), "path", "unmatched")


def _method(scope: MutableMapping[str, Any]) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD") else "other"
