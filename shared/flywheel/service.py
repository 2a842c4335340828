"""How every service starts, answers probes and stops."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web
from structlog.stdlib import BoundLogger

from flywheel import log, metrics, tracing
from flywheel.errors import EXIT_FATAL, FatalError
from flywheel.health import Health, Report
from flywheel.retry import Stopped, retry_in_place
from flywheel.settings import ServiceSettings
from flywheel.storage.postgres import transient
from flywheel.tracing.provider import Pipeline, pipeline

_TICK_S = 1.0
#: Longest wait, at the end, for a collector to take the last spans.
_LAST_SPANS_S = 2.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Service:
    """What a running service is handed: its name, health, the event that asks it to stop, its logger."""

    name: str
    settings: ServiceSettings
    log: BoundLogger
    health: Health = field(default_factory=Health)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_it_works(self, check: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return what ``work`` returns, trying again while database, broker or store are away; for the start.

        The service stays unready until what it starts then says that it consumes. Raises Stopped when the service is
        asked to stop first.
        """
        self.health.starting()
        return await retry_in_place(work, transient=transient, health=self.health, check=check, stop=self.stop)


async def run_service(
    name: str,
    settings: ServiceSettings,
    metrics_port: int | None,
    main: Callable[[Service], Awaitable[None]],
) -> int:
    """Run ``main`` until it returns; return the exit status: 0 after a clean stop, EXIT_FATAL after anything else.

    Logs become JSON on standard output. ``/healthz``, ``/readyz`` and ``/metrics`` are served on ``metrics_port``
    (None: the service serves them itself, from ``service.health``). SIGTERM and SIGINT set ``service.stop``;
    ``main`` then has ``settings.stop_grace_s`` seconds to drain before it is cancelled, which is no clean stop.
    """
    log.configure(name, settings.log_level)
    service = Service(name, settings, log.get_logger(f"flywheel.{name}"))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop.set)
    ticker = asyncio.create_task(_tick(service), name="ticker")
    runner = traces = None
    try:
        traces = _trace(service)
        if metrics_port is not None:
            runner = await _serve(service, settings.metrics_host, metrics_port)
        service.log.info("started", pid=os.getpid(), metrics_port=metrics_port)
        await _until_stopped(service, main)
    except Exception as error:
        causes = list(_causes(error))
        if not all(isinstance(cause, Stopped) for cause in causes):
            for cause in causes:
                service.log.error("fatal", error=str(cause), exc_info=None if isinstance(cause, FatalError) else cause)
            return EXIT_FATAL
        service.log.info("stopped while waiting for what it leans on")
    finally:
        ticker.cancel()
        if runner is not None:
            await runner.cleanup()
        if traces is not None:
            await asyncio.to_thread(traces.close, _LAST_SPANS_S)
    service.log.info("stopped")
    return 0


async def _until_stopped(service: Service, main: Callable[[Service], Awaitable[None]]) -> None:
    running = asyncio.ensure_future(main(service))
    stopping = asyncio.create_task(service.stop.wait(), name="stop")
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            service.log.info("stopping", grace_s=service.settings.stop_grace_s)
            await asyncio.wait({running}, timeout=service.settings.stop_grace_s)
        if not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=_TICK_S)
            raise FatalError(f"did not drain within {service.settings.stop_grace_s} s")
        await running
    finally:
        stopping.cancel()


def _causes(error: Exception) -> Iterator[Exception]:
    """Yield the errors themselves, out of the groups that task groups make of them."""
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


async def _tick(service: Service) -> None:
    """Beat for the event loop itself: a handler that blocks it stops the beat."""
    while True:
        service.health.beat("event_loop")
        metrics.READY.labels(service.name).set(service.health.ready_report().ok)
        await asyncio.sleep(_TICK_S)


def _trace(service: Service) -> Pipeline | None:
    """Begin to send traces, where the settings say so."""
    if not service.settings.otel:
        return None
    try:
        traces = pipeline(
            f"flywheel-{service.name}",
            ratio=service.settings.otel_ratio,
            tell=lambda outcome, spans: metrics.TRACE_SPANS.labels(outcome).inc(spans),
        )
    except ValueError as error:
        raise FatalError(f"a variable of OpenTelemetry's makes no sense: {error}") from error
    tracing.use(traces.provider, traces.most_links)
    service.log.info("tracing", endpoint=traces.endpoint, ratio=service.settings.otel_ratio)
    return traces


async def _serve(service: Service, host: str, port: int) -> web.AppRunner:
    async def healthz(_: web.Request) -> web.Response:
        return _answer(service.health.live(time.monotonic()))

    async def readyz(_: web.Request) -> web.Response:
        return _answer(service.health.ready_report())

    async def scrape(request: web.Request) -> web.Response:
        body, media_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": media_type})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise FatalError(f"{service.name} cannot listen on {host}:{port} for health and metrics: {error}") from error
    return runner


def _answer(report: Report) -> web.Response:
    return web.json_response({"ok": report.ok, "problems": report.problems}, status=200 if report.ok else 503)
