"""The archiver's SQL: the queue of closed trajectories, the batches, the events that go into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from flywheel import tracing
from flywheel.batches import Manifest, Member, Row
from flywheel.ids import uuid7
from flywheel.messages import DEFAULT_CHANNEL, BatchReady
from flywheel.naming import batch_manifest
from flywheel.settings import ArchiverSettings
from flywheel.storage.postgres import Connection
from flywheel.storage.rewards import reward_entries
from flywheel.stream.outbox import enqueue
from flywheel.topics import BATCHES
from services.archiver.readiness import MISSING_EVENTS, Closed, Decision, Group, decide, unfit

_ARCHIVER_LOCK = 0x61726368  # "arch"

_CLOSED = (
    "SELECT t.trajectory_id, t.revision, coalesce(t.channel, $1) AS channel, t.status, t.failure, t.split, t.steps,"
    " t.missing,"
    " t.scenario_id, t.group_id, t.group_size,"
    " EXISTS (SELECT 1 FROM archived_trajectories a WHERE a.trajectory_id = t.trajectory_id) AS archived"
    " FROM trajectories t WHERE t.revision > 0"
)

#: Most events held in memory at once while a batch is written; a single trajectory may have more.
_EVENTS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose members are decided."""

    batch_id: str
    channel: str
    rule: str
    created_at: datetime


@asynccontextmanager
async def only_archiver(pool: asyncpg.Pool) -> AsyncIterator[Connection | None]:
    """Give a connection while no other archiver of this database has one; None when another has."""
    async with pool.acquire() as conn:
        if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", _ARCHIVER_LOCK):
            yield None
            return
        try:
            yield conn
        finally:
            if not conn.is_closed():
                await conn.execute("SELECT pg_advisory_unlock($1)", _ARCHIVER_LOCK)


async def closed_trajectories(conn: Connection, ids: Sequence[str]) -> list[Closed]:
    """Return those of ``ids`` that are closed, as they are now."""
    rows = await conn.fetch(
        _CLOSED + " AND t.trajectory_id = ANY($2::text[]) ORDER BY t.trajectory_id", DEFAULT_CHANNEL, ids
    )
    return [Closed(**row) for row in rows]


async def queue(conn: Connection, fit: Sequence[Closed], others: Sequence[Closed]) -> tuple[int, int]:
    """Bring the queue in line with closed trajectories; return how many are new in it and how many came too late.

    What is in a batch stays as it is: only ``latest_revision`` tells that it was revised since.
    """
    new = await conn.fetch(
        "INSERT INTO archive_queue AS q"
        " (trajectory_id, revision, latest_revision, channel, scenario_id, group_id, group_size)"
        " SELECT n.id, n.revision, n.revision, n.channel, n.scenario, n.group_id, n.size"
        " FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::int[])"
        "   AS n(id, revision, channel, scenario, group_id, size)"
        " ON CONFLICT (trajectory_id) DO UPDATE SET revision = excluded.revision, channel = excluded.channel,"
        "   scenario_id = excluded.scenario_id, group_id = excluded.group_id, group_size = excluded.group_size,"
        "   latest_revision = excluded.latest_revision, queued_at = clock_timestamp()"
        "   WHERE q.batch_id IS NULL AND q.latest_revision < excluded.latest_revision"
        " RETURNING xmax = 0 AS inserted",
        [t.trajectory_id for t in fit],
        [t.revision for t in fit],
        [t.channel for t in fit],
        [t.scenario_id for t in fit],
        [t.group_id or t.trajectory_id for t in fit],
        [t.group_size if t.group_id else 1 for t in fit],
    )
    if others:
        await conn.execute(
            "DELETE FROM archive_queue WHERE trajectory_id = ANY($1::text[]) AND batch_id IS NULL",
            [t.trajectory_id for t in others],
        )
    everyone = [*fit, *others]
    late = await conn.fetch(
        "UPDATE archive_queue AS q SET latest_revision = n.revision"
        " FROM unnest($1::text[], $2::int[]) AS n(id, revision)"
        " WHERE q.trajectory_id = n.id AND q.batch_id IS NOT NULL AND q.latest_revision < n.revision RETURNING 1",
        [t.trajectory_id for t in everyone],
        [t.revision for t in everyone],
    )
    return sum(row["inserted"] for row in new), len(late)


async def waiting_groups(conn: Connection, *, unrewarded: bool = False) -> dict[str, list[Group]]:
    """Return what waits, by channel; with ``unrewarded`` also since when some of a group have had no reward."""
    rows = await conn.fetch(
        "SELECT channel, group_id, count(*) AS waiting, max(group_size) AS declared,"
        "  extract(epoch FROM clock_timestamp() - max(queued_at))::float8 AS quiet_s,"
        "  extract(epoch FROM clock_timestamp() - min(queued_at))::float8 AS age_s,"
        # A look-up for each that waits, and none where nobody asks: never a join with everything ever recorded.
        "  extract(epoch FROM clock_timestamp() - max(CASE WHEN $1 THEN ("
        "    SELECT t.closed_at FROM trajectories t"
        "     WHERE t.trajectory_id = q.trajectory_id AND t.total_reward IS NULL) END))::float8 AS unrewarded_s"
        " FROM archive_queue q WHERE batch_id IS NULL GROUP BY channel, group_id",
        unrewarded,
    )
    short = [row["group_id"] for row in rows if row["declared"] is not None and row["waiting"] < row["declared"]]
    elsewhere = await _accounted_elsewhere(conn, short) if short else Counter()
    out: dict[str, list[Group]] = {}
    for row in rows:
        group = Group(
            row["group_id"], row["waiting"], row["waiting"] + elsewhere[row["group_id"]], row["declared"],
            row["quiet_s"], row["age_s"], row["unrewarded_s"],
        )  # fmt: skip
        out.setdefault(row["channel"], []).append(group)
    return out


async def _accounted_elsewhere(conn: Connection, groups: Sequence[str]) -> Counter[str]:
    """Count the groups' attempts that are in a batch or ended unfit for good; one still on its way is neither."""
    batched = await conn.fetch(
        "SELECT group_id FROM archive_queue WHERE group_id = ANY($1::text[]) AND batch_id IS NOT NULL", groups
    )
    unqueued = await conn.fetch(
        _CLOSED + " AND t.group_id = ANY($2::text[])"
        " AND NOT EXISTS (SELECT 1 FROM archive_queue q WHERE q.trajectory_id = t.trajectory_id)",
        DEFAULT_CHANNEL,
        groups,
    )
    return Counter(row["group_id"] for row in batched) + Counter(
        row["group_id"] for row in unqueued if unfit(Closed(**row)) not in (None, MISSING_EVENTS)
    )


async def decide_batches(conn: Connection, rules: ArchiverSettings) -> dict[str, Decision]:
    """Judge every channel and fix the members of each batch that is ready, in one transaction; return the decisions.

    Raises a transient error when the queue changed meanwhile; nothing is decided then.
    """
    async with conn.transaction(isolation="repeatable_read"):
        waiting = await waiting_groups(conn, unrewarded=rules.outcome_wait_s > 0)
        decisions = {channel: decide(found, rules) for channel, found in waiting.items()}
        for channel, decision in decisions.items():
            if decision.ready:
                batch_id = str(uuid7())
                taken = await conn.fetch(
                    "UPDATE archive_queue SET batch_id = $1"
                    " WHERE channel = $2 AND batch_id IS NULL AND group_id = ANY($3::text[]) RETURNING 1",
                    batch_id,
                    channel,
                    decision.groups,
                )
                await conn.execute(
                    "INSERT INTO batches (batch_id, channel, status, rule, trajectories, groups)"
                    " VALUES ($1, $2, 'building', $3, $4, $5)",
                    batch_id,
                    channel,
                    decision.words,
                    len(taken),
                    len(decision.groups),
                )
    return decisions


async def building(conn: Connection) -> list[Batch]:
    """Return the batches that are decided and not ready, oldest first."""
    rows = await conn.fetch(
        "SELECT batch_id, channel, rule, created_at FROM batches WHERE status = 'building'"
        " ORDER BY created_at, batch_id"
    )
    return [Batch(**row) for row in rows]


async def members(conn: Connection, batch_id: str) -> list[str]:
    """Return the ids of a batch's members."""
    rows = await conn.fetch("SELECT trajectory_id FROM archive_queue WHERE batch_id = $1", batch_id)
    return [row["trajectory_id"] for row in rows]


async def rows_of(conn: Connection, batch_id: str) -> AsyncGenerator[list[Row], None]:
    """Yield a batch's rows in order, some at a time, all of one snapshot: revision and events belong together.

    A member that the recorder no longer has is not among them.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        found = await conn.fetch(
            "SELECT q.trajectory_id, q.group_id, t.revision, t.events FROM archive_queue q"
            " JOIN trajectories t USING (trajectory_id) WHERE q.batch_id = $1",
            batch_id,
        )
        # Ordered here, not in SQL: the order of texts must not depend on the database's collation.
        found.sort(key=lambda row: (row["group_id"], row["trajectory_id"]))
        portion: list[asyncpg.Record] = []
        size = 0
        for row in found:
            portion.append(row)
            size += row["events"]
            if size >= _EVENTS_AT_ONCE:
                yield await _with_events(conn, portion)
                portion, size = [], 0
        if portion:
            yield await _with_events(conn, portion)


async def finish(conn: Connection, manifest: Manifest, sha256: str) -> bool:
    """Mark the batch ready and announce it, in one transaction; its trace is the current one. False when it was ready
    already.
    """
    key = batch_manifest(manifest.batch_id)
    async with conn.transaction():
        done = await conn.fetchval(
            "UPDATE batches SET status = 'ready', trajectories = $2, groups = $3, manifest = $4, manifest_sha256 = $5,"
            " bytes = $6, trace_context = $7, ready_at = clock_timestamp()"
            " WHERE batch_id = $1 AND status = 'building' RETURNING true",
            manifest.batch_id,
            manifest.counts.trajectories,
            manifest.counts.groups,
            key,
            sha256,
            sum(file.bytes for file in manifest.files),
            tracing.current(),
        )
        if not done:
            return False
        await conn.execute(
            "UPDATE archive_queue AS q SET revision = n.revision,"
            " latest_revision = greatest(latest_revision, n.revision)"
            " FROM unnest($1::text[], $2::int[]) AS n(id, revision) WHERE q.trajectory_id = n.id",
            [member.trajectory_id for member in manifest.members],
            [member.revision for member in manifest.members],
        )
        message = BatchReady(
            batch_id=manifest.batch_id,
            channel=manifest.channel,
            manifest=key,
            manifest_sha256=sha256,
            trajectories=manifest.counts.trajectories,
            groups=manifest.counts.groups,
            rule=manifest.rule,
        )
        await enqueue(conn, BATCHES, manifest.batch_id, message)
    return True


async def _with_events(conn: Connection, portion: Sequence[asyncpg.Record]) -> list[Row]:
    bodies: dict[str, list[str]] = {row["trajectory_id"]: [] for row in portion}
    for event in await conn.fetch(
        "SELECT trajectory_id, body FROM events WHERE trajectory_id = ANY($1::text[])"
        " ORDER BY trajectory_id, seq, event_id",
        list(bodies),
    ):
        bodies[event["trajectory_id"]].append(event["body"])
    entries = await reward_entries(conn, list(bodies))
    return [
        Row(
            Member(trajectory_id=row["trajectory_id"], revision=row["revision"], group_id=row["group_id"]),
            bodies[row["trajectory_id"]],
            entries[row["trajectory_id"]],
        )
        for row in portion
        # Fewer than were recorded: some are of a day that was archived and dropped.
        if bodies[row["trajectory_id"]] and len(bodies[row["trajectory_id"]]) >= row["events"]
    ]
