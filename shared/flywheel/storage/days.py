"""The days of the table ``events``, in Postgres: made ahead, sealed, dropped. Locks are short, or not taken.

A day's partition is ``open``; then ``sealed``: nothing can be inserted any more; then ``archived``: every event lies in
the object store; then ``dropped``. ``event_days`` says which, and keeps its row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import asyncpg

from flywheel.archive import ArchivedEvent
from flywheel.days import bounds, day_of, partition
from flywheel.errors import TransientError
from flywheel.storage.postgres import Connection

#: Named so that whoever runs into it can be told why.
SEALED = "events_sealed"
_COMING = "events_coming_"

_DAYS_LOCK = 0x64617973  # "days"

#: Longest wait for a lock. Whoever wants the table meanwhile waits behind us, so it is short, and tried again later.
_LOCK_TIMEOUT = "500ms"
#: Longest statement on a whole day's rows, in seconds.
_WHOLE_DAY_S = 1800.0

#: Condition for ids that belong to a day at all; for servers without uuid_extract_version (below 17) too.
_IS_V7 = "substr(event_id::text, 15, 1) = '7'"

#: Events in memory at once while a day is read; one may have 4 MiB.
_PAGE = 200

#: Rows never change: the vacuum that inserts call for freezes them at once.
_OPTIONS = "autovacuum_freeze_min_age = 0, toast.autovacuum_freeze_min_age = 0"


@dataclass(frozen=True, slots=True)
class Day:
    """A row of ``event_days``."""

    day: date
    state: str
    blocked: str | None
    rows: int | None
    bytes: int | None
    strays: int | None
    manifest: str | None
    manifest_sha256: str | None
    sealed_at: datetime | None
    archived_at: datetime | None
    dropped_at: datetime | None


_COLUMNS = ", ".join(Day.__dataclass_fields__)


@asynccontextmanager
async def only_keeper(pool: asyncpg.Pool, task: int) -> AsyncIterator[Connection | None]:
    """Give a connection while nobody else does this ``task`` on the days (any small number); None when somebody is."""
    async with pool.acquire() as conn:
        if not await conn.fetchval("SELECT pg_try_advisory_lock($1, $2)", _DAYS_LOCK, task):
            yield None
            return
        try:
            yield conn
        finally:
            if not conn.is_closed():
                await conn.execute("SELECT pg_advisory_unlock($1, $2)", _DAYS_LOCK, task)


async def days(conn: Connection | asyncpg.Pool) -> list[Day]:
    """Return every day there ever was, oldest first."""
    return [Day(**row) for row in await conn.fetch(f"SELECT {_COLUMNS} FROM event_days ORDER BY day")]


async def sizes(pool: asyncpg.Pool) -> dict[date, int]:
    """Return how many bytes the days in the database take there, indexes and all."""
    found = await pool.fetch(
        "SELECT day, pg_total_relation_size(to_regclass('events_' || to_char(day, 'YYYYMMDD'))) AS bytes"
        " FROM event_days WHERE state <> 'dropped'"
    )
    return {row["day"]: row["bytes"] for row in found if row["bytes"] is not None}


async def make(conn: Connection, day: date) -> None:
    """Make the day's partition, unless the day has one or had one; rows of it that the default one holds move there.

    In two transactions, so that the default partition is never scanned under a lock that keeps others out: first it
    takes no more rows of the day, then what it has moves, that it has no more is verified, and the partition is
    attached. Raises LockNotAvailableError; what was begun is then completed by the next call.
    """
    if await conn.fetchval("SELECT true FROM event_days WHERE day = $1", day):
        return
    name, guard = partition(day), f"{_COMING}{day:%Y%m%d}"
    first, after = (f"'{bound}'::uuid" for bound in bounds(day))
    guarded = "SELECT true FROM pg_constraint WHERE conrelid = 'events_default'::regclass AND conname = $1"
    if not await conn.fetchval(guarded, guard):
        async with _briefly(conn):
            await conn.execute(
                f"ALTER TABLE events_default ADD CONSTRAINT {guard}"
                f" CHECK (event_id < {first} OR event_id >= {after}) NOT VALID"
            )
    async with _briefly(conn):
        await conn.execute(
            f"CREATE TABLE {name} (LIKE events_default INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION"
            f" INCLUDING INDEXES) WITH ({_OPTIONS})"
        )
        await conn.execute(
            f"WITH moved AS (DELETE FROM events_default WHERE event_id >= {first} AND event_id < {after} RETURNING *)"
            f" INSERT INTO {name} SELECT * FROM moved",
            timeout=_WHOLE_DAY_S,
        )
        await conn.execute(f"ALTER TABLE events_default VALIDATE CONSTRAINT {guard}", timeout=_WHOLE_DAY_S)
        await conn.execute(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({after})")
        await conn.execute(f"ALTER TABLE events_default DROP CONSTRAINT {guard}")
        await conn.execute("INSERT INTO event_days (day) VALUES ($1)", day)


async def why_kept(conn: Connection, day: date, changed_since: datetime) -> str | None:
    """Return in words why the day's events are still needed here, or None.

    They are while one of its trajectories is open, changed after ``changed_since``, or waits for a batch or in one that
    is being built.
    """
    found = await conn.fetchrow(
        f"""
        SELECT count(*) FILTER (WHERE t.status = 'open') AS open,
               count(*) FILTER (WHERE t.status <> 'open'
                                  AND greatest(t.last_ingested_at, t.closed_at) > $1) AS "changed lately",
               count(*) FILTER (WHERE q.trajectory_id IS NOT NULL AND q.batch_id IS NULL) AS "waiting for a batch",
               count(*) FILTER (WHERE b.status = 'building') AS "in a batch that is being built"
          FROM (SELECT DISTINCT trajectory_id FROM {partition(day)}) AS e
               LEFT JOIN trajectories t USING (trajectory_id)
               LEFT JOIN archive_queue q USING (trajectory_id)
               LEFT JOIN batches b ON b.batch_id = q.batch_id
        """,
        changed_since, timeout=_WHOLE_DAY_S,
    )  # fmt: skip
    assert found is not None  # an aggregate always has one row
    reasons = [f"{count} {what}" for what, count in found.items() if count]
    return "trajectories: " + ", ".join(reasons) if reasons else None


async def note(conn: Connection, day: date, blocked: str | None) -> None:
    """Keep, for people, why a day that is past its time stays."""
    await conn.execute(
        "UPDATE event_days SET blocked = $2 WHERE day = $1 AND blocked IS DISTINCT FROM $2", day, blocked
    )


async def seal(conn: Connection, day: date, changed_since: datetime) -> str | None:
    """Have the day take no more events, once those on their way are in; or return why its events are still needed.

    Writers wait while that is judged; readers do not. Raises LockNotAvailableError.
    """
    name = partition(day)
    async with _briefly(conn):
        await conn.execute(f"LOCK TABLE {name} IN SHARE MODE")
        if kept := await why_kept(conn, day, changed_since):
            return kept
        # Not valid, and never to be validated: the planner would take the partition for empty.
        await conn.execute(f"ALTER TABLE {name} ADD CONSTRAINT {SEALED} CHECK (false) NOT VALID")
        await conn.execute(
            "UPDATE event_days SET state = 'sealed', sealed_at = clock_timestamp(), blocked = NULL WHERE day = $1", day
        )
    return None


async def count(conn: Connection, day: date) -> tuple[int, int]:
    """Return how many events the day has, and how many rows beside them whose ids belong to no day."""
    found = await conn.fetchrow(
        f"SELECT count(*) FILTER (WHERE {_IS_V7}) AS events, count(*) AS all FROM {partition(day)}",
        timeout=_WHOLE_DAY_S,
    )
    assert found is not None  # an aggregate always has one row
    return found["events"], found["all"] - found["events"]


async def events(conn: Connection, day: date) -> AsyncIterator[list[ArchivedEvent]]:
    """Yield the day's events in the order of their ids, some at a time. Complete once the day is sealed."""
    after, _ = bounds(day)
    sql = f"""SELECT {", ".join(ArchivedEvent.__struct_fields__)} FROM {partition(day)}
               WHERE event_id > $1 AND {_IS_V7} ORDER BY event_id LIMIT {_PAGE}"""
    while rows := await conn.fetch(sql, after):
        yield [ArchivedEvent(**{**row, "digest": row["digest"].hex()}) for row in rows]
        after = rows[-1]["event_id"]


async def archived(
    conn: Connection, day: date, *, rows: int, size: int, strays: int, manifest: str, manifest_sha256: str
) -> None:
    """Note that every event of the sealed day lies in the object store, and whose they are."""
    async with conn.transaction():
        await conn.execute(
            f"""
            INSERT INTO archived_trajectories (trajectory_id, day, events)
            SELECT trajectory_id, $1, count(*) FROM {partition(day)} WHERE {_IS_V7} GROUP BY trajectory_id
            ON CONFLICT DO NOTHING
            """,
            day, timeout=_WHOLE_DAY_S,
        )  # fmt: skip
        await conn.execute(
            "UPDATE event_days SET state = 'archived', rows = $2, bytes = $3, strays = $4, manifest = $5,"
            " manifest_sha256 = $6, archived_at = clock_timestamp() WHERE day = $1 AND state IN ('sealed', 'archived')",
            day, rows, size, strays, manifest, manifest_sha256,
        )  # fmt: skip


async def drop(conn: Connection, day: Day) -> None:
    """Drop the partition of an archived day. Rows whose ids belong to no day go to the default partition.

    Raises LockNotAvailableError, ValueError for a day that is not archived.
    """
    if day.state != "archived":
        raise ValueError(f"{day.day} is {day.state}, not archived")
    name = partition(day.day)
    async with _briefly(conn):
        if day.strays:
            await conn.execute(f"ALTER TABLE events DETACH PARTITION {name}")
            await conn.execute(f"INSERT INTO events SELECT * FROM {name} WHERE NOT {_IS_V7}", timeout=_WHOLE_DAY_S)
        await conn.execute(f"DROP TABLE {name}")
        await conn.execute(
            "UPDATE event_days SET state = 'dropped', dropped_at = clock_timestamp() WHERE day = $1", day.day
        )


async def refused(pool: asyncpg.Pool, error: asyncpg.CheckViolationError, ids: Iterable[UUID]) -> dict[UUID, date]:
    """Return which of ``ids`` an insert into ``events`` failed for, with the day that takes no more of them.

    Raises TransientError when a partition was just being made, and ``error`` when it has nothing to do with days.
    """
    constraint: str = getattr(error, "constraint_name", None) or ""  # set by the driver, unknown to its types
    if constraint.startswith(_COMING):
        raise TransientError("the day's partition is being made") from error
    if constraint != SEALED:
        raise error
    closed = dict(await pool.fetch("SELECT day, state FROM event_days WHERE state <> 'open'"))
    found: dict[UUID, date] = {}
    for event_id in ids:
        # Until it is dropped, a sealed partition refuses every id of its range, whatever its version.
        day = day_of(event_id) or _lies_in(event_id, (day for day, state in closed.items() if state != "dropped"))
        if day is not None and day in closed:
            found[event_id] = day
    if not found:
        raise TransientError("a day was sealed a moment ago") from error
    return found


def _lies_in(event_id: UUID, sealed: Iterable[date]) -> date | None:
    return next((day for day in sealed if bounds(day)[0] <= event_id < bounds(day)[1]), None)


@asynccontextmanager
async def _briefly(conn: Any) -> AsyncIterator[None]:
    async with conn.transaction():
        await conn.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        yield
