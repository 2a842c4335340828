"""Storage of the recorder: one transaction a batch, idempotent by event_id, fenced by the stored offsets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from flywheel.errors import TransientError
from flywheel.messages import TrajectoryClosed
from flywheel.stream.positions import Move, Rejected
from services.recorder import copying
from services.recorder import statements as sql
from services.recorder.aggregate import aggregate
from services.recorder.announcing import announce
from services.recorder.decode import Decoded
from services.recorder.dedupe import contradictions, unique
from services.recorder.idle import IdleRules
from services.recorder.ledger import store as ledger
from services.recorder.offsets.store import StoredOffsets

_CLOSE_AT_ONCE = 500

_NO_TRACES: Mapping[str, str] = {}

#: Stores events within a transaction and returns those that are new.
Insert = Callable[[Any, Sequence[Decoded]], Awaitable[Sequence[Decoded]]]


@dataclass(frozen=True, slots=True)
class Written:
    """What one transaction changed."""

    inserted: Sequence[Decoded] = ()
    duplicates: int = 0
    announced: list[TrajectoryClosed] = field(default_factory=list)


class Store:
    """The tables ``events``, ``trajectories``, ``stream_offsets``, and the outbox, for one consumer of one topic."""

    def __init__(self, pool: asyncpg.Pool, *, consumer: str, topic: str) -> None:
        self._pool = pool
        self._offsets = StoredOffsets(consumer=consumer, topic=topic)
        self._repeats = True
        """Whether the last batch held events that were stored before: after a start they are to be expected."""

    async def positions(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return the next offset of each partition; its beginning where none, or an older one, was stored."""
        return await self._offsets.positions(self._pool, beginnings)

    async def write(
        self, events: Sequence[Decoded], moves: Sequence[Move], traces: Mapping[str, str] = _NO_TRACES
    ) -> Written:
        """Store events, their trajectories' rows, announcements and offsets: all of it, or nothing. ``traces`` are the
        contexts in which trajectories are played, by id.

        Raises Rejected for events that contradict stored ones, Fenced when the offsets are not where they were
        expected.
        """
        first, contested = unique(events)
        if contested:
            stored = dict(await self._pool.fetch(sql.STORED_DIGESTS, list(contested)))
            holds = {event_id: first[event_id].row.digest for event_id in contested} | stored
            raise Rejected(contradictions(events, holds))
        if not self._repeats:
            try:
                return await self._write(events, first, moves, self._copy, traces)
            except asyncpg.UniqueViolationError:
                self._repeats = True
        written = await self._write(events, first, moves, self._insert, traces)
        self._repeats = len(written.inserted) < len(first)
        return written

    async def _write(
        self, events: Sequence[Decoded], first: Mapping[UUID, Decoded], moves: Sequence[Move], insert: Insert,
        traces: Mapping[str, str],
    ) -> Written:  # fmt: skip
        async with self._pool.acquire() as conn, conn.transaction():
            await ledger.share(conn)
            await self._offsets.move(conn, moves)
            if not first:
                return Written()
            # In the order of the ids, so that two processes with the same events never wait for each other in a circle.
            new = await insert(conn, sorted(first.values(), key=lambda event: event.row.event_id.int))
            changes, announced = await self._merge(conn, new, traces) if new else (ledger.Changes(), [])
        changes.count()
        return Written(new, len(events) - len(new), announced)

    async def reached(self) -> dict[int, int]:
        """Return the next offset of every partition, whichever process has it."""
        return await self._offsets.reached(self._pool)

    async def close_idle(self, idle: IdleRules, before_s: float = 0.0) -> list[TrajectoryClosed]:
        """Close, as incomplete, some open trajectories that had been silent for as long as ``idle`` says ``before_s``
        seconds ago, and still are; announce them.
        """
        patterns, seconds = idle.ranked()
        values = (
            idle.shortest_s + before_s, _CLOSE_AT_ONCE, idle.default_s + before_s, patterns,
            [silence + before_s for silence in seconds],
        )  # fmt: skip
        async with self._pool.acquire() as conn, conn.transaction():
            return await announce(conn, await conn.fetch(sql.CLOSE_IDLE, *values))

    async def open_trajectories(self) -> int:
        """Return how many trajectories have not ended."""
        return await self._pool.fetchval(sql.OPEN)

    async def _copy(self, conn: Any, events: Sequence[Decoded]) -> Sequence[Decoded]:
        """Store events, all of them new; return them. Raises UniqueViolationError when one is not: twice as fast."""
        await self._send(conn, "events", events)
        return events

    @staticmethod
    async def _send(conn: Any, table: str, events: Sequence[Decoded]) -> None:
        rows = copying.stream(event.row.copied for event in events)
        await conn.copy_to_table(table, source=rows, columns=copying.COLUMNS, format="binary")

    async def _insert(self, conn: Any, events: Sequence[Decoded]) -> Sequence[Decoded]:
        """Store those of the events that are new; return them."""
        await self._send(conn, "incoming", events)
        inserted = {row["event_id"] for row in await conn.fetch(sql.INSERT_NEW)}
        if len(inserted) < len(events):
            known = [event for event in events if event.row.event_id not in inserted]
            await self._compare(conn, {event.row.event_id: event for event in known})
        return [event for event in events if event.row.event_id in inserted]

    async def _compare(self, conn: Any, repeated: Mapping[UUID, Decoded]) -> None:
        stored = dict(await conn.fetch(sql.STORED_DIGESTS, list(repeated)))
        if reasons := contradictions(repeated.values(), stored):
            raise Rejected(reasons)
        if len(stored) < len(repeated):
            raise TransientError("an event that was there a moment ago is gone")

    async def _merge(
        self, conn: Any, events: Sequence[Decoded], traces: Mapping[str, str]
    ) -> tuple[ledger.Changes, list[TrajectoryClosed]]:
        deltas = aggregate(event.delta for event in events)
        changes = await ledger.settle(conn, await conn.fetch(sql.UPSERT, *sql.upsert_arguments(deltas, traces)))
        return changes, await announce(conn, [row for row in changes.rows if row["revision"]])


async def prepare(conn: Any) -> None:
    """Make a fresh connection ready for :class:`Store`; for the pool's ``init``."""
    await conn.execute(sql.INCOMING)
