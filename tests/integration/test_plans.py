"""How Postgres answers the services' queries on some ten thousand trajectories: from indexes, and from each of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.days import today
from flywheel.storage import postgres
from services.archiver import store as archiver
from services.gateway import store as gateway
from services.gateway.filters import PageQuery, TrajectoryQuery
from services.recorder import statements as recorder
from tests.support.days import days_ago, make

pytestmark = pytest.mark.stack

TRAJECTORIES = 30_000

FILL = f"""
INSERT INTO trajectories (trajectory_id, agent_id, scenario_id, group_id, group_size, split, channel, model_version,
                          window_id, first_event_at, status, events, reward_sum, reward_count, seq_max, revision,
                          first_ingested_at, last_ingested_at)
SELECT 't-' || n, 'agent-' || n % 500, 'scenario-' || n % 1000, 'group-' || n / 8, 8,
       CASE WHEN n % 10 = 0 THEN 'held_out' ELSE 'train' END, CASE n % 4 WHEN 0 THEN NULL ELSE 'channel-' || n % 4 END,
       '1.' || n / 1000 || '.0', to_char('2026-01-01'::timestamptz + n * '1 min'::interval, 'YYYY-MM-DD"T"HH24'),
       now(), CASE WHEN n > {TRAJECTORIES} - 200 THEN 'open' WHEN n % 50 = 0 THEN 'error' ELSE 'completed' END,
       4, n % 7, 1, 3, 1, '2026-01-01'::timestamptz + n * '1 min'::interval, now()
  FROM generate_series(1, {TRAJECTORIES}) n;
INSERT INTO events (event_id, trajectory_id, seq, kind, agent_id, time, digest, src_partition, src_offset, body)
SELECT overlay(overlay(md5(n::text || seq) placing lpad(to_hex((extract(epoch FROM now() - (n % 3) * '1 day'::interval)
         * 1000)::bigint), 12, '0') from 1 for 12) placing '7' from 13 for 1)::uuid,
       't-' || n, seq, 'step', 'a', now(), '\\x00', 0, 0, to_json(repeat('x', 100))::text
  FROM generate_series(1, {TRAJECTORIES}) n, generate_series(0, 3) seq;
INSERT INTO events (event_id, trajectory_id, seq, kind, agent_id, time, digest, src_partition, src_offset, body)
SELECT gen_random_uuid(), 'odd-' || n, 0, 'step', 'a', now(), '\\x00', 0, 0, to_json(repeat('x', 100))::text
  FROM generate_series(1, 10000) n;
INSERT INTO archive_queue (trajectory_id, revision, channel, group_id, group_size, latest_revision, batch_id)
SELECT 't-' || n, 1, 'channel-' || n % 4, 'group-' || n / 8, 8, 1, CASE WHEN n < 29000 THEN 'batch-' || n / 100 END
  FROM generate_series(1, {TRAJECTORIES}) n;
INSERT INTO event_days (day, state, rows, manifest, manifest_sha256)
SELECT '2025-01-01'::date + n, 'dropped', 1, 'm', 's' FROM generate_series(1, 300) n;
INSERT INTO archived_trajectories (trajectory_id, day, events)
SELECT 'a-' || n, '2025-01-01'::date + 1 + n % 300, 4 FROM generate_series(1, 20000) n;
"""


@pytest_asyncio.fixture(scope="module")
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await postgres.connect(database)
    await make(pool, *(days_ago(ago) for ago in range(3)))
    await pool.execute(FILL, timeout=120)
    await pool.execute("VACUUM ANALYZE", timeout=120)
    yield pool
    await pool.close()


class Explained:
    """Stands for a pool: notes how what it is asked would be answered, and answers."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.plans: list[tuple[str, dict[str, Any]]] = []

    async def _note(self, sql: str, *args: Any) -> None:
        (row,) = await self._pool.fetch(f"EXPLAIN (FORMAT JSON) {sql}", *args)
        self.plans.append((sql, json.loads(row[0])[0]["Plan"]))

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        await self._note(sql, *args)
        return await self._pool.fetch(sql, *args)

    async def fetchval(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        await self._note(sql, *args)
        return await self._pool.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        await self._note(sql, *args)
        return await self._pool.execute(sql, *args)

    def nodes(self) -> list[tuple[str, dict[str, Any]]]:
        def walk(sql: str, node: dict[str, Any]) -> Any:
            yield sql, node
            for inner in node.get("Plans", ()):
                yield from walk(sql, inner)

        return [found for sql, plan in self.plans for found in walk(sql, plan)]

    def scanned_whole(self, *tables: str) -> list[str]:
        return [
            f"{node['Relation Name']}: {sql}" for sql, node in self.nodes()
            if node["Node Type"] == "Seq Scan" and node["Relation Name"].startswith(tables)
        ]  # fmt: skip

    def indexes(self) -> set[str]:
        return {node["Index Name"] for _, node in self.nodes() if "Index Name" in node}


FILTERS: Sequence[dict[str, Any]] = (
    {}, {"agent": "agent-7"}, {"scenario": "scenario-7"}, {"group": "group-7"}, {"window": "2026-01-03T04"},
    {"status": "open"}, {"status": "error"}, {"status": "timeout"}, {"split": "held_out"}, {"channel": "channel-1"},
    {"model_version": "1.3.0"}, {"min_reward": 5}, {"max_reward": 1}, {"agent": "nobody"}, {"scenario": "none"},
    {"group": "none"}, {"window": "2031-01-01T00"}, {"channel": "none"}, {"model_version": "9.9.9"},
    {"agent": "agent-50", "status": "error", "min_reward": 1}, {"channel": "channel-1", "model_version": "1.3.0"},
)  # fmt: skip


@pytest.mark.parametrize("chosen", FILTERS, ids=str)
async def test_every_page_of_trajectories_comes_from_an_index(pool: asyncpg.Pool, chosen: dict[str, Any]) -> None:
    asked: Any = Explained(pool)
    page = await gateway.trajectories(asked, TrajectoryQuery(limit=50, **chosen))
    if page.next:
        await gateway.trajectories(asked, TrajectoryQuery(limit=50, cursor=page.next, **chosen))
    assert asked.scanned_whole("trajectories", "events") == []
    nothing_there = chosen and set(chosen.values()) & {"nobody", "none", "2031-01-01T00", "9.9.9", "timeout"}
    assert bool(page.items) != bool(nothing_there)


async def test_no_index_is_missing_and_none_is_for_nothing(pool: asyncpg.Pool) -> None:
    """Each query of the services on these tables, at least once; together they use every index that there is."""
    asked: Any = Explained(pool)
    for chosen in FILTERS:
        await gateway.trajectories(asked, TrajectoryQuery(limit=50, **chosen))
    page = await gateway.events(asked, "t-77", PageQuery(limit=2))
    await gateway.events(asked, "t-77", PageQuery(limit=2, cursor=page.next))
    await asked.fetchval("SELECT revision FROM trajectories WHERE trajectory_id = $1", "t-77")
    await asked.fetch("SELECT body FROM events WHERE trajectory_id = ANY($1)", ["t-77", "t-78"])
    await gateway.members(asked, "batch-7")
    async with pool.acquire() as conn:
        one: Any = Explained(conn)
        await archiver.closed_trajectories(one, ["t-1", "t-2"])
        await archiver.waiting_groups(one, unrewarded=True)
        await archiver.members(one, "batch-7")
        await archiver._accounted_elsewhere(one, ["group-7", "group-3700"])
        await one.execute(
            "UPDATE archive_queue SET batch_id = 'x'"
            " WHERE channel = $1 AND batch_id IS NULL AND group_id = ANY($2::text[])",
            "channel-1", ["group-3700"],
        )  # fmt: skip
        event_id = await conn.fetchval(f"SELECT event_id FROM events_{today():%Y%m%d} LIMIT 1")
        await one.fetch(recorder.STORED_DIGESTS, [event_id])
        await one.fetchval(recorder.OPEN)
        await one.fetch(recorder.CLOSE_IDLE, 10.0, 500, 900.0, ["market-%"], [10.0])
    assert [*asked.scanned_whole("trajectories", "events"), *one.scanned_whole("trajectories", "events")] == []
    used = asked.indexes() | one.indexes()
    there = await pool.fetch(
        "SELECT indexname FROM pg_indexes WHERE tablename = ANY($1)",
        ["trajectories", f"events_{today():%Y%m%d}", "archive_queue", "archived_trajectories"],
    )
    assert {row["indexname"] for row in there} - used == set()


async def test_updates_of_a_trajectory_by_new_events_write_no_index(pool: asyncpg.Pool) -> None:
    sql = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'trajectories'"
    await pool.execute("SELECT pg_stat_force_next_flush()")
    before = await pool.fetchrow(sql)
    async with pool.acquire() as conn:
        await conn.execute(
            "UPDATE trajectories SET events = events + 1, last_ingested_at = now() WHERE status = 'open'"
        )
        await conn.execute("SELECT pg_stat_force_next_flush()")
    async with pool.acquire() as conn:
        await conn.execute("SELECT pg_stat_clear_snapshot()")
        after = await conn.fetchrow(sql)
    assert before
    assert after
    updated, hot = (after[n] - before[n] for n in (0, 1))
    assert updated == 200
    assert hot > 60, hot  # all at once: as many as a page has room for; without that, none
