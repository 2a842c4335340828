"""What the tools ask the database and the archive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields

import asyncpg

from flywheel.storage.rewards import reward_entries
from flywheel.tools.findings import Stored, TrajectoryRow, read

_COLUMNS = ", ".join(field.name for field in fields(TrajectoryRow))

#: Trajectories read at once. Their events, token ids and all, are in memory together.
PAGE = 50


@dataclass(frozen=True, slots=True)
class Scope:
    """Which trajectories are meant; none of the filters: all."""

    window_id: str | None = None
    agent_id: str | None = None
    scenario_id: str | None = None
    prefix: str | None = None


_IN_SCOPE = (
    "($1::text IS NULL OR window_id = $1) AND ($2::text IS NULL OR agent_id = $2)"
    " AND ($3::text IS NULL OR scenario_id = $3) AND ($4::text IS NULL OR starts_with(trajectory_id, $4))"
)
#: Some of its events are of a day that was archived and dropped.
_ARCHIVED = (
    "EXISTS (SELECT FROM archived_trajectories a JOIN event_days d USING (day)"
    " WHERE a.trajectory_id = trajectories.trajectory_id AND d.state = 'dropped')"
)


async def trajectories(pool: asyncpg.Pool, scope: Scope) -> AsyncIterator[Stored]:
    """Yield every trajectory in scope with its events, in order of its id; memory holds one page.

    A row and its events are of one snapshot, so a busy recorder is never mistaken for a wrong counter. Those that
    retention has put into the archive are not among them: :func:`archived` counts them.
    """
    after = ""
    while True:
        async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            await conn.execute(
                "LOCK TABLE events IN ACCESS SHARE MODE"
            )  # before the snapshot: no day is dropped under it
            page = await conn.fetch(
                f"SELECT {_COLUMNS} FROM trajectories WHERE {_IN_SCOPE} AND trajectory_id > $5 AND NOT {_ARCHIVED}"
                " ORDER BY trajectory_id LIMIT $6",
                scope.window_id, scope.agent_id, scope.scenario_id, scope.prefix, after, PAGE,
            )  # fmt: skip
            if not page:
                return
            bodies: dict[str, list[tuple[str, str]]] = {row["trajectory_id"]: [] for row in page}
            for event in await conn.fetch(
                "SELECT trajectory_id, event_id::text, body FROM events WHERE trajectory_id = ANY($1)"
                " ORDER BY trajectory_id, seq, event_id", list(bodies),
            ):  # fmt: skip
                bodies[event["trajectory_id"]].append((event["event_id"], event["body"]))
            entries = await reward_entries(conn, list(bodies))
        for row in page:
            yield read(TrajectoryRow(**row), bodies[row["trajectory_id"]], entries[row["trajectory_id"]])
        after = page[-1]["trajectory_id"]


async def archived(pool: asyncpg.Pool, scope: Scope) -> int:
    """Return how many trajectories in scope are no longer whole in the database, because a day was dropped."""
    return await pool.fetchval(
        f"SELECT count(*) FROM trajectories WHERE {_IN_SCOPE} AND {_ARCHIVED}",
        scope.window_id, scope.agent_id, scope.scenario_id, scope.prefix,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the database has of one set of generated trajectories."""

    trajectories: int
    closed: int
    events: int
    missing: int
    reward_sum: float
    prompt_tokens: int
    completion_tokens: int


async def amounts(pool: asyncpg.Pool, prefix: str) -> Amounts:
    """Add up all trajectories whose id starts with ``prefix``."""
    row = await pool.fetchrow(
        """
        SELECT count(*), count(*) FILTER (WHERE status <> 'open'), coalesce(sum(events), 0)::bigint,
               coalesce(sum(missing), 0)::bigint, coalesce(sum(total_reward), 0)::float8,
               coalesce(sum(prompt_tokens), 0)::bigint, coalesce(sum(completion_tokens), 0)::bigint
          FROM trajectories WHERE starts_with(trajectory_id, $1)
        """,
        prefix,
    )
    assert row is not None  # an aggregate always has one row
    return Amounts(*row)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch that is said to be ready."""

    batch_id: str
    manifest: str
    manifest_sha256: str
    trajectories: int


async def ready_batches(pool: asyncpg.Pool) -> list[BatchRow]:
    """Return every batch that was announced as ready."""
    found = await pool.fetch(
        "SELECT batch_id, manifest, manifest_sha256, trajectories FROM batches WHERE status = 'ready' ORDER BY batch_id"
    )
    return [BatchRow(**row) for row in found]
