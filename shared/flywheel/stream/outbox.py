"""The outbox: a message that must follow a commit is written in the same transaction, and a relay publishes it.

Published at least once, in the order of commit within a key. Every service that enqueues runs a relay; one of them
at a time works (an advisory lock of the database says which), so that two never overtake each other.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from flywheel import metrics
from flywheel.errors import TransientError
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.messages import MessageBase
from flywheel.retry import Stopped, retry_in_place
from flywheel.storage.postgres import transient
from flywheel.stream.producer import Producer
from flywheel.topics import Topic
from flywheel.tracing import current
from flywheel.tracing.messaging import create
from flywheel.waiting import first_of

_log = get_logger(__name__)

_RELAY_LOCK = 0x6F757462  # "outb"
_BATCH = 500
_POLL_S = 0.5
_CONTENDED_S = 0.05
_MEASURE_EVERY_S = 5.0

_INSERT = "INSERT INTO outbox (topic, key, value, headers) VALUES ($1, $2, $3, $4::jsonb)"
_INSERT_MANY = """
INSERT INTO outbox (topic, key, value, headers)
SELECT $1, key, value, headers::jsonb
  FROM unnest($2::text[], $3::bytea[], $4::text[]) WITH ORDINALITY AS m (key, value, headers, n) ORDER BY n
"""
_NEXT = "SELECT id, topic, key, value, headers FROM outbox ORDER BY id LIMIT $1"
_NONE = "{}"


async def enqueue(
    conn: asyncpg.Connection | Any, topic: Topic, key: str, message: MessageBase, trace: str | None = None
) -> None:
    """Write a message in the caller's transaction. It is published if, and only if, that commits.

    It goes on in the trace of the context ``trace``, else in the one that is current.

    Two messages of one key keep their order only if the caller's transactions exclude each other (a row lock on what
    the key names, taken before): ids are drawn here, not at commit.
    """
    await conn.execute(_INSERT, topic.name, key, message.dump(), _packed(create(topic, key, trace)))


async def enqueue_many(
    conn: asyncpg.Connection | Any, topic: Topic, messages: Iterable[tuple[str, MessageBase, str | None]]
) -> None:
    """Write several (key, message, context), in order, as :func:`enqueue` does: each goes on in the trace of its own
    context, and in none without one.
    """
    here = [(context, {}) for context in [current()] if context]
    packed = [
        (key, message.dump(), _NONE if trace is None else _packed(create(topic, key, trace, here)))
        for key, message, trace in messages
    ]
    if packed:
        await conn.execute(_INSERT_MANY, topic.name, *map(list, zip(*packed, strict=True)))


def _packed(headers: Mapping[str, str]) -> str:
    return json.dumps(headers) if headers else _NONE


class OutboxRelay:
    """Publishes what committed. Stateless: what it was doing when it died, the next one does again."""

    def __init__(self, pool: asyncpg.Pool, producer: Producer, health: Health | None = None) -> None:
        self._pool = pool
        self._producer = producer
        self._health = health or Health()
        self._news = asyncio.Event()
        self._measured = 0.0

    def nudge(self) -> None:
        """Say that something was just committed, so that it does not wait for the next look."""
        self._news.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop`` is set, then once more what is left. Database and broker outages are waited out."""
        while not stop.is_set():
            self._news.clear()
            try:
                mine = await retry_in_place(
                    self.drain, transient=transient, health=self._health, check="outbox", stop=stop
                )
            except Stopped:
                return
            await self._rest(_POLL_S if mine else _CONTENDED_S, stop)
        try:
            await self.drain()
        except Exception as error:
            if not transient(error):
                raise
            _log.warning("outbox left for the next relay", error=repr(error))

    async def drain(self) -> bool:
        """Publish all there is now. Returns False when another relay is at it. Raises TransientError."""
        async with self._pool.acquire() as conn:
            await self._measure(conn)
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", _RELAY_LOCK):
                return False
            try:
                while rows := await conn.fetch(_NEXT, _BATCH):
                    await self._publish(rows)
                    await conn.execute("DELETE FROM outbox WHERE id = ANY($1::bigint[])", [row["id"] for row in rows])
                    for row in rows:
                        metrics.PUBLISHED.labels(row["topic"]).inc()
                    if len(rows) < _BATCH:
                        break
            finally:
                if not conn.is_closed():
                    await conn.execute("SELECT pg_advisory_unlock($1)", _RELAY_LOCK)
        return True

    async def _publish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        futures = [
            await self._producer.send(
                row["topic"], row["key"], row["value"], {} if row["headers"] == _NONE else json.loads(row["headers"])
            )
            for row in rows
        ]
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise TransientError(f"not published: {outcome!r}") from outcome

    async def _rest(self, seconds: float, stop: asyncio.Event) -> None:
        await first_of(stop, *([self._news] if seconds > _CONTENDED_S else []), timeout=seconds)

    async def _measure(self, conn: Any) -> None:
        if time.monotonic() - self._measured < _MEASURE_EVERY_S:
            return
        self._measured = time.monotonic()
        row = await conn.fetchrow(
            "SELECT count(*) AS depth, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0) AS age"
            " FROM outbox"
        )
        metrics.OUTBOX_DEPTH.set(row["depth"])
        metrics.OUTBOX_AGE.set(float(row["age"]))
