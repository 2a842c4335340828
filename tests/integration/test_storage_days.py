"""The table of events by day, on a real Postgres: made beside writers, sealed for good, dropped in a moment."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.days import bounds, partition, today
from flywheel.errors import TransientError
from flywheel.storage import days, postgres
from flywheel.storage.postgres import connect, migrate
from services.recorder.days import make_ahead
from tests.support.days import dated, days_ago, id_of, make, settle, state, store_settled
from tests.support.recorded import play, store_play
from tests.support.world import fresh_database, unique, with_database

pytestmark = pytest.mark.stack

COLUMNS = [
    "event_id", "trajectory_id", "seq", "kind", "agent_id", "time", "digest", "src_partition", "src_offset", "body",
]  # fmt: skip
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest_asyncio.fixture
async def pool(stack: Any) -> Any:
    """A database of its own for each test: days are the same for everybody."""
    async with fresh_database(stack.env["FLYWHEEL_POSTGRES"]) as dsn:
        pool = await connect(dsn)
        yield pool
        await pool.close()


async def rows_in(pool: asyncpg.Pool, table: str) -> int:
    return await pool.fetchval(f"SELECT count(*) FROM {table}")


async def test_the_migration_keeps_every_row_and_every_face_of_them(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stack.env["FLYWHEEL_POSTGRES"]
    name = unique("old").replace("-", "_")
    files = list(postgres._migrations())
    admin = await asyncpg.connect(with_database(server, "postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    pool = await connect(with_database(server, name))
    try:
        monkeypatch.setattr(postgres, "_migrations", lambda: iter(f for f in files if f[0] < "0005"))
        await migrate(pool)
        for number in range(30):
            events = dated(play(f"t-{number}"), days_ago(number % 3))
            if number == 7:  # an id of another version
                events[0] = events[0].model_copy(update={"event_id": uuid.uuid4()})
            await store_play(pool, events)
        faces = ("events", "steps", "llm_calls", "provider_accesses", "rewards")
        ask = "SELECT coalesce(jsonb_agg(to_jsonb(x) ORDER BY event_id), '[]')::text FROM {} x"
        before = [await pool.fetchval(ask.format(face)) for face in faces]
        monkeypatch.setattr(postgres, "_migrations", lambda: iter(files))
        assert (await migrate(pool))[0] == "0005_storage.sql"
        assert [await pool.fetchval(ask.format(face)) for face in faces] == before
        assert await make_ahead(pool, 3)
        assert [await pool.fetchval(ask.format(face)) for face in faces] == before
        assert await rows_in(pool, partition(today())) == 40
        assert await rows_in(pool, partition(days_ago(1))) == 39  # the id of another version stays where it was
        assert await rows_in(pool, "events_default") == 41
        assert await migrate(pool) == []
    finally:
        await pool.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def test_days_are_made_ahead_once_by_however_many_recorders(pool: asyncpg.Pool) -> None:
    await asyncio.gather(*(make_ahead(pool, 4) for _ in range(3)))
    assert await make_ahead(pool, 4)
    assert [day.day for day in await days.days(pool)] == [days_ago(ago) for ago in range(1, -5, -1)]
    names = await pool.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'events'::regclass"
    )
    assert {row["name"] for row in names} == {"events_default", *(partition(days_ago(ago)) for ago in range(1, -5, -1))}
    compressed = await pool.fetch(
        "SELECT attcompression FROM pg_attribute WHERE attname = 'body' AND attrelid = ANY($1::text[]::regclass[])",
        [row["name"] for row in names],
    )
    assert len({row["attcompression"] for row in compressed}) == 1


async def test_an_id_is_stored_once_wherever_it_lies_and_a_copy_finds_its_day(pool: asyncpg.Pool) -> None:
    events = dated(play("before"), today())
    await store_play(pool, events)
    assert await rows_in(pool, "events_default") == 4
    await make(pool, today())
    assert (await rows_in(pool, "events_default"), await rows_in(pool, partition(today()))) == (0, 4)
    again = await pool.execute(
        f"INSERT INTO events ({', '.join(COLUMNS)})"
        " SELECT event_id, trajectory_id, seq, kind, agent_id, time, digest, 9, 9, 'other' FROM events"
        " ON CONFLICT (event_id) DO NOTHING"
    )
    assert again == "INSERT 0 0"
    new, odd = id_of(today()), uuid.uuid4()
    records = [(key, "copied", 0, "step", "a", LONG_AGO, b"", 0, 0, "{}") for key in (new, odd)]
    await pool.copy_records_to_table("events", records=records, columns=COLUMNS)
    assert await pool.fetchval(f"SELECT true FROM {partition(today())} WHERE event_id = $1", new)
    assert await pool.fetchval("SELECT true FROM events_default WHERE event_id = $1", odd)
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.copy_records_to_table("events", records=records[:1], columns=COLUMNS)


async def test_the_default_partition_is_not_scanned_while_others_are_kept_out(pool: asyncpg.Pool) -> None:
    told: list[str] = []

    def listen(_: Any, message: Any) -> None:
        told.append(str(message))

    async with pool.acquire() as conn:
        conn.add_log_listener(listen)
        await conn.execute("SET client_min_messages = debug1")
        await days.make(conn, today())
        await conn.execute("RESET client_min_messages")
        conn.remove_log_listener(listen)
    implied = 'updated partition constraint for default partition "events_default" is implied'
    assert any(implied in line for line in told), told


async def test_a_partition_that_was_begun_refuses_for_now_and_is_completed(pool: asyncpg.Pool) -> None:
    reader = await pool.acquire()
    transaction = reader.transaction()
    await transaction.start()
    await reader.fetch("SELECT FROM events_default")  # holds its lock as an export does
    try:
        async with pool.acquire() as conn:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await days.make(conn, today())
    finally:
        await transaction.rollback()
        await pool.release(reader)
    async with pool.acquire() as conn:
        first, after = bounds(today())
        await conn.execute(
            "ALTER TABLE events_default ADD CONSTRAINT"
            f" events_coming_{today():%Y%m%d} CHECK (event_id < '{first}' OR event_id >= '{after}') NOT VALID"
        )  # as a process leaves it that died in between
    events = dated(play("early"), today())
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await store_play(pool, events)
    with pytest.raises(TransientError):
        await days.refused(pool, caught.value, [event.event_id for event in events])
    await make(pool, today())
    await store_play(pool, events)
    assert await rows_in(pool, partition(today())) == 4


async def test_a_day_is_needed_while_one_of_its_trajectories_may_still_be_read(pool: asyncpg.Pool) -> None:
    day = days_ago(40)
    await make(pool, day)
    await store_settled(pool, "t", day)

    async def why() -> str | None:
        async with pool.acquire() as conn:
            return await days.seal(conn, day, LONG_AGO.replace(year=2020))

    await pool.execute("UPDATE trajectories SET status = 'open', revision = 0")
    assert await why() == "trajectories: 1 open"
    await pool.execute("UPDATE trajectories SET status = 'completed', revision = 1, closed_at = '2021-01-01'")
    assert await why() == "trajectories: 1 changed lately"
    await pool.execute("UPDATE trajectories SET closed_at = '2019-01-01', last_ingested_at = '2019-01-01'")
    await pool.execute(
        "INSERT INTO archive_queue (trajectory_id, revision, channel, group_id, latest_revision)"
        " VALUES ('t', 1, 'default', 'g', 1)"
    )
    assert await why() == "trajectories: 1 waiting for a batch"
    await pool.execute(
        "INSERT INTO batches (batch_id, channel, status, rule, trajectories, groups)"
        " VALUES ('b', 'c', 'building', '', 1, 1)"
    )
    await pool.execute("UPDATE archive_queue SET batch_id = 'b'")
    assert await why() == "trajectories: 1 in a batch that is being built"
    assert (await state(pool, day)).state == "open"
    await pool.execute("UPDATE batches SET status = 'ready'")
    assert await why() is None
    assert (await state(pool, day)).state == "sealed"


async def test_sealing_waits_for_what_is_on_its_way_and_lets_nothing_in_afterwards(pool: asyncpg.Pool) -> None:
    day = days_ago(40)
    await make(pool, day)
    await store_settled(pool, "t", day)
    writer = await pool.acquire()
    transaction = writer.transaction()
    await transaction.start()
    await store_play(writer, dated(play("late", ended=False), day))
    async with pool.acquire() as conn:
        with pytest.raises(asyncpg.LockNotAvailableError):  # tried again later
            await days.seal(conn, day, LONG_AGO)
        await transaction.commit()
        await pool.release(writer)
        assert await days.seal(conn, day, datetime.now(UTC)) == "trajectories: 1 open"
        await pool.execute("UPDATE trajectories SET status = 'completed'")
        assert await days.seal(conn, day, datetime.now(UTC)) is None
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await store_play(pool, [*dated(play("x"), today()), *dated(play("x"), day)[:1]])
    late = dated(play("y"), day)[0].event_id
    assert await days.refused(pool, caught.value, [id_of(today()), late]) == {late: day}
    # The planner must not take the sealed partition for empty.
    assert await pool.fetchval("SELECT count(*) FROM events WHERE trajectory_id IN ('t', 'late')") == 7


async def test_a_dropped_day_is_gone_in_a_moment_and_stays_closed_while_odd_ids_live_on(pool: asyncpg.Pool) -> None:
    day = days_ago(40)
    await make(pool, day, today())
    await store_settled(pool, "t", day)
    in_range = uuid.UUID(int=bounds(day)[0].int + (4 << 76) + 5)  # of another version, by chance within the day
    (odd, *_) = play("odd")
    await store_play(pool, [odd.model_copy(update={"event_id": in_range})])
    await pool.execute("UPDATE trajectories SET status = 'completed'")
    await settle(pool, "odd", LONG_AGO)
    async with pool.acquire() as conn:
        with pytest.raises(ValueError, match="open, not archived"):
            await days.drop(conn, await state(pool, day))
        assert await days.seal(conn, day, datetime.now(UTC)) is None
        assert await days.count(conn, day) == (4, 1)
        assert [event.event_id.version async for page in days.events(conn, day) for event in page] == [7] * 4
        await days.archived(conn, day, rows=4, size=1, strays=1, manifest="m", manifest_sha256="s")
        await days.drop(conn, await state(pool, day))
        await days.make(conn, day)  # nothing: it had its time
    assert await pool.fetchval("SELECT to_regclass($1)", partition(day)) is None
    assert await pool.fetchval("SELECT event_id FROM events_default") == in_range
    assert [tuple(row) for row in await pool.fetch("SELECT * FROM archived_trajectories")] == [("t", day, 4)]
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await store_play(pool, dated(play("late"), day))
    late = id_of(day)
    assert await days.refused(pool, caught.value, [late, in_range, id_of(today())]) == {late: day}
    await store_play(pool, dated(play("elsewhere"), days_ago(39)))  # a day that never had a partition is no dropped one
    assert await rows_in(pool, "events_default") == 5
