"""The gateway as an application: the interface, the pages, health and metrics over one database."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from flywheel import metrics as catalogue
from flywheel import tracing
from flywheel.health import Health, Report
from services.gateway import problems
from services.gateway.api import api
from services.gateway.broker import BrokerWatch
from services.gateway.figures import Figures
from services.gateway.guard import OPEN, VIEWER, Observer, TokenGuard
from services.gateway.pages import pages

_DESCRIPTION = """\
Reads everything that Flywheel recorded, archived, trained and deployed. Nothing here changes anything.

Listings come in pages: pass `next` of one as `cursor` of the following. Errors are problem documents (RFC 9457).
"""


def create_app(
    pool: asyncpg.Pool, *, health: Health, token: str | None = None, broker: BrokerWatch | None = None
) -> FastAPI:
    """Return the application. ``pool`` may be of a database that is away: readers then get 503 and come again.

    With a ``token`` everything but probes and metrics asks for it. Without ``broker`` lag and dead letters are unknown.
    """
    app = FastAPIOffline(  # the viewer at /docs comes from here, not from the internet
        redoc_url=None, static_url=VIEWER, title="Flywheel gateway", version=_version(), description=_DESCRIPTION,
        telemetry=_telemetry(),
    )  # fmt: skip
    figures = Figures(pool, broker)
    _probes(app, health)
    app.include_router(api(pool, figures))
    app.include_router(pages(pool, figures))
    problems.install(app)
    app.add_middleware(TokenGuard, token=token)
    app.add_middleware(Observer)  # the last one added is the outermost: it sees refusals too
    return app


def _probes(app: FastAPI, health: Health) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """Whether the process is alive."""
        return _answer(health.live(time.monotonic()))

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Response:
        """Whether the database can be read."""
        return _answer(health.ready_report())

    @app.get("/metrics", tags=["operation"])
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        body, media_type = catalogue.exposition(request.headers.get("accept", ""))
        return Response(body, media_type=media_type)


def _telemetry() -> TelemetryConfig:
    """Have FastAPI trace requests with what traces everything else here, and configure nothing by itself."""
    return {
        "tracing": tracing.on(), "tracer_provider": tracing.tracer_provider(), "operation_spans": False,
        "metrics": False, "logs": False, "auto_configure": False, "exclude": lambda scope: scope["path"] in OPEN,
    }  # fmt: skip


def _answer(report: Report) -> Response:
    return JSONResponse({"ok": report.ok, "problems": report.problems}, status_code=200 if report.ok else 503)


def _version() -> str:
    try:
        return version("flywheel")
    except PackageNotFoundError:
        return "source"
