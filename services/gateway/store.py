"""Trajectories, events, batches and jobs from Postgres, read-only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
from pydantic_core import from_json

from flywheel.events import parse
from flywheel.naming import day_manifest
from flywheel.outcomes import RewardEntry
from flywheel.storage import postgres
from flywheel.storage.rewards import reward_entries
from flywheel.trajectory import Trajectory, assemble
from services.gateway import cursor
from services.gateway.cursor import Keyset
from services.gateway.filters import PageQuery, TrajectoryFilter, TrajectoryQuery
from services.gateway.views import BatchRow, EventRow, JobRow, Member, Page, TrajectoryRow, View

#: Longest wait for an answer at all, in seconds.
CHECK_S = 5.0
#: Longest wait for a query of a page, in seconds. A reader is told to come again rather than kept waiting.
QUERY_S = 15.0
#: An export whose reader takes nothing for this long, in seconds, is cut off: it holds a snapshot of the database.
EXPORT_IDLE_S = 60
#: Trajectories that an export holds in memory.
EXPORT_CHUNK = 20


def columns(kind: type[View]) -> str:
    """Return what to select of the table that a view shows, where the two have the same names."""
    return ", ".join("substr(trace_context, 4, 32) AS trace_id" if n == "trace_id" else n for n in kind.model_fields)


_TRAJECTORIES = Keyset("first_ingested_at", "trajectory_id", ("time", "text"), descending=True)
_EVENTS = Keyset("seq", "event_id", ("int", "uuid"))
_BATCHES = Keyset("created_at", "batch_id", ("time", "text"), descending=True)
_JOBS = Keyset("created_at", "job_id", ("time", "text"), descending=True)

_TRAJECTORY = f"SELECT {columns(TrajectoryRow)} FROM trajectories"
_EVENT = """SELECT event_id, seq, kind, step, time, ingested_at, src_partition AS partition,
                   src_offset AS "offset", body
              FROM events"""
_BATCH = f"SELECT {columns(BatchRow)} FROM batches"
_JOB = """SELECT * FROM (
            SELECT j.job_id, j.batch_id, j.channel, status, attempt, j.parent_version, j.model_id, m.version,
                   steps_done, steps_total, counts::text AS counts, j.metrics::text AS metrics, error,
                   created_at, started_at, updated_at, finished_at, substr(j.trace_context, 4, 32) AS trace_id
              FROM training_jobs j LEFT JOIN models m ON m.model_id = j.model_id) AS jobs"""
_MEMBER = """SELECT q.trajectory_id, q.revision, q.latest_revision, q.group_id, t.agent_id, q.scenario_id,
                    t.model_version, t.total_reward, substr(t.trace_context, 4, 32) AS trace_id
               FROM archive_queue q LEFT JOIN trajectories t USING (trajectory_id)
              WHERE q.batch_id = $1 ORDER BY q.group_id, q.trajectory_id"""
#: The days that hold events of trajectory $1 and were dropped from the database.
_GONE = """SELECT a.day FROM archived_trajectories a JOIN event_days d USING (day)
            WHERE a.trajectory_id = $1 AND d.state = 'dropped' ORDER BY a.day"""
_WHOLE = """NOT EXISTS (SELECT FROM archived_trajectories a JOIN event_days d USING (day)
                         WHERE a.trajectory_id = trajectories.trajectory_id AND d.state = 'dropped')"""
#: Columns that hold JSON as text.
JSON_COLUMNS = frozenset({"body", "counts", "metrics", "evaluation", "artifact"})

Row = TypeVar("Row", bound=View)


class ArchivedError(Exception):
    """Events that were asked for are no longer in the database; the message says where they are."""


def away(error: BaseException) -> str | None:
    """Return in words why the database cannot be read now, if that will pass by itself; else None."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return "The database has no tables of this version yet; the other services create them when they start."
    return "The database is away or busy." if postgres.transient(error) else None


async def check(pool: asyncpg.Pool) -> None:
    """Read something. Raises what :func:`away` explains."""
    await pool.fetch("SELECT FROM trajectories LIMIT 1", timeout=CHECK_S)


def view(kind: type[Row], record: asyncpg.Record) -> Row:
    """Return a record as what readers see."""
    # The reader that let the events in: others refuse integers and floats that it takes.
    values = {name: from_json(value) if name in JSON_COLUMNS else value for name, value in record.items()}
    if "event_id" in values:
        values["event_id"] = str(values["event_id"])
    return kind.model_validate(values)


async def page(
    pool: asyncpg.Pool,
    kind: type[Row],
    select: str,
    keyset: Keyset,
    query: PageQuery,
    *,
    scope: str = "",
    conditions: Sequence[str] = (),
    values: Sequence[Any] = (),
) -> Page[Row]:
    """Return one page of a listing. Raises CursorError for a cursor of another one."""
    where, parameters = list(conditions), list(values)
    if query.cursor is not None:
        parameters += cursor.decode(keyset, scope, query.cursor)
        where.append(keyset.behind(f"${len(parameters) - 1}", f"${len(parameters)}"))
    sql = f"{select}{' WHERE ' if where else ''}{' AND '.join(where)} ORDER BY {keyset.order} LIMIT {query.limit + 1}"
    records = await pool.fetch(sql, *parameters, timeout=QUERY_S)
    shown, more = records[: query.limit], len(records) > query.limit
    following = cursor.encode(keyset, scope, shown[-1][keyset.first], shown[-1][keyset.second]) if more else None
    return Page[kind](items=[view(kind, record) for record in shown], next=following)


async def trajectories(pool: asyncpg.Pool, query: TrajectoryQuery) -> Page[TrajectoryRow]:
    """Return trajectories, the newest first by when their first event was stored."""
    conditions, values = query.conditions()
    return await page(
        pool, TrajectoryRow, _TRAJECTORY, _TRAJECTORIES, query,
        scope=query.scope(), conditions=conditions, values=values,
    )  # fmt: skip


async def events(pool: asyncpg.Pool, trajectory_id: str, query: PageQuery) -> Page[EventRow]:
    """Return the events of a trajectory in the order of ``seq``, as they arrived. Raises ArchivedError."""
    found = await page(
        pool, EventRow, _EVENT, _EVENTS, query,
        scope=trajectory_id, conditions=["trajectory_id = $1"], values=[trajectory_id],
    )  # fmt: skip
    await _must_be_whole(pool, trajectory_id)
    return found


async def trajectory(pool: asyncpg.Pool, trajectory_id: str) -> Trajectory | None:
    """Return one trajectory whole, or None. Events and revision are of one moment. Raises ArchivedError."""
    async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        revision = await conn.fetchval(
            "SELECT revision FROM trajectories WHERE trajectory_id = $1", trajectory_id, timeout=QUERY_S
        )
        if revision is None:
            return None
        bodies = await conn.fetch("SELECT body FROM events WHERE trajectory_id = $1", trajectory_id, timeout=QUERY_S)
        entries = await reward_entries(conn, [trajectory_id], timeout_s=QUERY_S)
    await _must_be_whole(pool, trajectory_id)
    return await asyncio.to_thread(_assemble, [row["body"] for row in bodies], entries[trajectory_id], revision)


async def _must_be_whole(pool: asyncpg.Pool, trajectory_id: str) -> None:
    """Raise ArchivedError where events are gone. Asked after they were read: a drop in between is noticed."""
    if gone := await pool.fetch(_GONE, trajectory_id, timeout=QUERY_S):
        places = ", ".join(day_manifest(row["day"]) for row in gone)
        raise ArchivedError(
            f"Events of trajectory {trajectory_id} were archived and dropped from the database. They are in the object"
            f" store: {places}. Its figures stay in /api/v1/trajectories."
        )


async def batches(pool: asyncpg.Pool, query: PageQuery) -> Page[BatchRow]:
    """Return batches, the newest first."""
    return await page(pool, BatchRow, _BATCH, _BATCHES, query)


async def batch(pool: asyncpg.Pool, batch_id: str) -> BatchRow | None:
    """Return one batch, or None."""
    record = await pool.fetchrow(f"{_BATCH} WHERE batch_id = $1", batch_id, timeout=QUERY_S)
    return view(BatchRow, record) if record else None


async def members(pool: asyncpg.Pool, batch_id: str) -> list[Member]:
    """Return the trajectories of a batch."""
    return [view(Member, record) for record in await pool.fetch(_MEMBER, batch_id, timeout=QUERY_S)]


async def jobs(pool: asyncpg.Pool, query: PageQuery) -> Page[JobRow]:
    """Return training jobs, the newest first."""
    return await page(pool, JobRow, _JOB, _JOBS, query)


async def job_of_batch(pool: asyncpg.Pool, batch_id: str) -> JobRow | None:
    """Return the training of a batch, or None."""
    record = await pool.fetchrow(f"{_JOB} WHERE batch_id = $1", batch_id, timeout=QUERY_S)
    return view(JobRow, record) if record else None


@dataclass(frozen=True, slots=True)
class Export:
    """An export that is under way: what it leaves out, and the trajectories in chunks."""

    without_reward: int
    archived: int
    chunks: AsyncIterator[list[Trajectory]]


@asynccontextmanager
async def export(pool: asyncpg.Pool, chosen: TrajectoryFilter) -> AsyncIterator[Export]:
    """Open an export of the closed trajectories that fit, oldest first: one snapshot, in memory a chunk at a time.

    Trajectories without a reward, or with events that were archived and dropped, are counted and left out. The snapshot
    ends with the context.
    """
    conditions, values = chosen.conditions()
    where = " AND ".join(["revision > 0", *conditions])
    async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        await conn.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{EXPORT_IDLE_S}s'")
        await conn.execute("LOCK TABLE events IN ACCESS SHARE MODE")  # before the snapshot: no day is dropped under it
        without = await conn.fetchval(
            f"SELECT count(*) FROM trajectories WHERE {where} AND total_reward IS NULL", *values, timeout=QUERY_S
        )
        archived = await conn.fetchval(
            f"SELECT count(*) FROM trajectories WHERE {where} AND total_reward IS NOT NULL AND NOT {_WHOLE}", *values,
            timeout=QUERY_S,
        )  # fmt: skip
        rows = conn.cursor(
            f"""SELECT trajectory_id, revision FROM trajectories WHERE {where} AND total_reward IS NOT NULL AND {_WHOLE}
                 ORDER BY first_ingested_at, trajectory_id""",
            *values, prefetch=EXPORT_CHUNK,
        )  # fmt: skip
        yield Export(without, archived, _chunks(conn, rows))


async def _chunks(conn: Any, rows: AsyncIterator[asyncpg.Record]) -> AsyncIterator[list[Trajectory]]:
    chunk: dict[str, int] = {}
    async for row in rows:
        chunk[row["trajectory_id"]] = row["revision"]
        if len(chunk) == EXPORT_CHUNK:
            yield await _whole(conn, chunk)
            chunk = {}
    if chunk:
        yield await _whole(conn, chunk)


async def _whole(conn: Any, chunk: dict[str, int]) -> list[Trajectory]:
    records = await conn.fetch(
        "SELECT trajectory_id, body FROM events WHERE trajectory_id = ANY($1)", list(chunk), timeout=QUERY_S
    )
    bodies: dict[str, list[str]] = {trajectory_id: [] for trajectory_id in chunk}
    for record in records:
        bodies[record["trajectory_id"]].append(record["body"])
    entries = await reward_entries(conn, list(chunk), timeout_s=QUERY_S)
    return [
        await asyncio.to_thread(_assemble, bodies[name], entries[name], revision) for name, revision in chunk.items()
    ]


def _assemble(bodies: Sequence[str], entries: Sequence[RewardEntry], revision: int) -> Trajectory:
    return assemble((parse(body) for body in bodies), entries=entries, revision=revision)
