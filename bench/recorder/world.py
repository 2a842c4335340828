"""Where a figure is measured: an empty database and empty topics on a stack of our own, and recorder processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from flywheel import traceparent
from flywheel.days import today
from flywheel.sdk.chance import fraction
from flywheel.storage import days
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS
from tests.support.processes import ServiceProcess
from tests.support.world import empty_topics, fresh_database

_TICKS = os.sysconf("SC_CLK_TCK")
_NONE: dict[str, str] = {}
_PAGE = os.sysconf("SC_PAGE_SIZE")


class World:
    """An empty database and empty topics; ``env`` points services at them."""

    def __init__(self, env: dict[str, str], logs: Path, traced: float = 0.0) -> None:
        self.env = env
        self._logs = logs
        self._traced = traced

    @property
    def kafka(self) -> str:
        """Bootstrap address."""
        return self.env["FLYWHEEL_KAFKA"]

    @property
    def postgres(self) -> str:
        """URL of the database."""
        return self.env["FLYWHEEL_POSTGRES"]

    async def publish(self, events: Iterable[tuple[str, bytes]]) -> int:
        """Publish events as fast as the broker takes them; return how many, once it has them all. Those of the share
        of trajectories that is traced carry a trace context.
        """
        producer = Producer(self.kafka, linger_ms=20)
        await producer.start()
        count = 0
        for key, value in events:
            await producer.send(EVENTS.name, key, value, _context(key) if fraction(key) < self._traced else _NONE)
            count += 1
        await producer.stop()
        return count

    @asynccontextmanager
    async def recorders(self, number: int) -> AsyncIterator[list[ServiceProcess]]:
        """Give that many running recorder processes; they are started at once and need not be ready yet."""
        async with AsyncExitStack() as running:
            processes = [
                ServiceProcess("recorder", {**self.env, "FLYWHEEL_LOG_LEVEL": "info"}, self._logs / f"recorder-{n}.log")
                for n in range(number)
            ]
            for process in processes:
                await process.start(ready=False)
                running.push_async_callback(process.stop)
            yield processes


@asynccontextmanager
async def fresh_world(env: dict[str, str], logs: Path, traced: float = 0.0) -> AsyncIterator[World]:
    """Give an empty world on a running stack, in which this share of trajectories is traced by their agents."""
    await empty_topics(env["FLYWHEEL_KAFKA"])
    async with fresh_database(env["FLYWHEEL_POSTGRES"]) as dsn:
        async with connected(dsn) as connection:
            await days.make(connection, today())  # as a recorder does when it starts: the others get the same table
        yield World({**env, "FLYWHEEL_POSTGRES": dsn, "FLYWHEEL_ENV_FILE": os.devnull}, logs, traced)


def _context(trajectory_id: str) -> dict[str, str]:
    """Return the headers of an event of a traced trajectory."""
    digest = hashlib.blake2b(trajectory_id.encode(), digest_size=24).hexdigest()
    return {traceparent.HEADER: f"00-{digest[:32]}-{digest[32:]}-01"}


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Give one connection."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def reached(connection: asyncpg.Connection, query: str, count: int, every_s: float = 0.02) -> float:
    """Return the time (``time.perf_counter``) at which ``query``, a number, was first at least ``count``."""
    while (await connection.fetchval(query) or 0) < count:  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(every_s)
    return time.perf_counter()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mb(pid: int) -> float:
    """Return a process's resident memory, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6
