"""Runs the gateway: ``python -m services.gateway``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator

import asyncpg
import uvicorn

from flywheel.errors import FatalError
from flywheel.service import Service, run_service
from flywheel.settings import Connections, GatewaySettings, ServiceSettings
from flywheel.storage import postgres
from flywheel.stream.cluster import Cluster
from flywheel.waiting import first_of
from services.gateway import store
from services.gateway.app import create_app
from services.gateway.broker import BrokerWatch

_POOL = 8
_PROBE_EVERY_S = 1.0
#: Requests may take this long to end after SIGTERM, in seconds; an export that takes longer is cut off.
_DRAIN_S = 10


class Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the service decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service."""
        yield


async def run(service: Service, connections: Connections, settings: GatewaySettings) -> None:
    """Answer requests until the service is asked to stop, then drain."""
    kafka = Cluster(connections)
    # No connection yet: the gateway answers, with 503, while the database is away.
    pool = await postgres.connect(connections.postgres, min_size=0, max_size=_POOL)
    broker = BrokerWatch(kafka, pool)
    token = settings.token.get_secret_value() if settings.token else None
    app = create_app(pool, health=service.health, token=token, broker=broker)
    listening = _bind(settings)
    server = Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_probe(service, pool))
            tasks.create_task(broker.run(service.stop))
            tasks.create_task(_stop(service, server))
            service.log.info("listening", host=settings.host, port=settings.port, token=token is not None)
            await server.serve(sockets=[listening])
            service.stop.set()
    finally:
        pool.terminate()


def _bind(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise FatalError(f"the gateway cannot listen on {settings.host}:{settings.port}: {error}") from error


async def _stop(service: Service, server: Server) -> None:
    await service.stop.wait()
    server.should_exit = True


async def _probe(service: Service, pool: asyncpg.Pool) -> None:
    """Keep readiness current: whether the database can be read."""
    while not service.stop.is_set():
        try:
            await store.check(pool)
            service.health.ready("postgres", True)
        except Exception as error:
            why = store.away(error)
            if why is None:
                raise
            service.health.ready("postgres", False, f"{why} ({type(error).__name__}: {error})")
        await first_of(service.stop, timeout=_PROBE_EVERY_S)


def main() -> int:
    """Read the settings, run, and return the exit status."""
    connections, settings = Connections.load(), GatewaySettings.load()
    return asyncio.run(
        run_service("gateway", ServiceSettings.load(), None, lambda service: run(service, connections, settings))
    )


if __name__ == "__main__":
    sys.exit(main())
