"""Days past their time, on a real Postgres and a real object store: archived whole, then dropped, whoever dies when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from flywheel import archive, naming
from flywheel.days import partition, today
from flywheel.errors import PoisonError, TransientError
from flywheel.events import dump, parse
from flywheel.health import Health
from flywheel.settings import ArchiverSettings
from flywheel.storage import days
from flywheel.storage.memory import MemoryObjectStore
from flywheel.storage.objects import ObjectStore
from flywheel.storage.postgres import connect
from flywheel.storage.s3 import S3ObjectStore
from services.archiver.days import DayKeeper
from tests.support.days import dated, days_ago, make, state, store_settled
from tests.support.processes import ServiceProcesses
from tests.support.recorded import play, store_play
from tests.support.waiting import eventually
from tests.support.world import fresh_database

pytestmark = pytest.mark.stack

SETTINGS = ArchiverSettings(retention_days=30)
OLD = days_ago(40)


@pytest_asyncio.fixture
async def pool(stack: Any) -> AsyncIterator[asyncpg.Pool]:
    """A database of its own for each test: days are the same for everybody."""
    async with fresh_database(stack.env["FLYWHEEL_POSTGRES"]) as dsn:
        pool = await connect(dsn)
        yield pool
        await pool.close()


def keeper(pool: asyncpg.Pool, objects: ObjectStore) -> DayKeeper:
    return DayKeeper(pool, objects, SETTINGS, Health())


async def archived(pool: asyncpg.Pool, objects: ObjectStore, day: Any = OLD) -> list[bytes]:
    """The events of an archived day, verified, as their agent wrote them."""
    sha256 = (await state(pool, day)).manifest_sha256
    assert sha256 is not None
    return [event.body.encode() for event in archive.read_day(objects, day, sha256)]


async def test_a_day_past_its_time_moves_to_the_archive_and_others_stay(
    pool: asyncpg.Pool, object_store: S3ObjectStore
) -> None:
    await make(pool, OLD, days_ago(31), days_ago(30), today())
    old = [await store_settled(pool, f"old-{number}", OLD) for number in range(5)]
    for ago in (31, 30, 0):
        await store_settled(pool, f"t-{ago}", days_ago(ago))
    columns = ", ".join(archive.ArchivedEvent.__struct_fields__)
    before = [dict(row) for row in await pool.fetch(f"SELECT {columns} FROM {partition(OLD)} ORDER BY event_id")]
    await keeper(pool, object_store).cycle()
    assert [(day.day, day.state) for day in await days.days(pool)] == [
        (OLD, "dropped"), (days_ago(31), "dropped"), (days_ago(30), "open"), (today(), "open"),
    ]  # fmt: skip
    found = await state(pool, OLD)
    assert (found.rows, found.strays, found.blocked) == (20, 0, None)
    assert found.bytes == sum(i.size for i in object_store.list(naming.day_prefix(OLD)) if i.key != found.manifest)
    assert sorted(await archived(pool, object_store)) == sorted(dump(event) for events in old for event in events)
    assert found.manifest_sha256
    kept = [msgspec.structs.asdict(event) for event in archive.read_day(object_store, OLD, found.manifest_sha256)]
    assert [{**event, "digest": bytes.fromhex(event["digest"])} for event in kept] == before
    assert await pool.fetchval("SELECT count(*) FROM events") == 8
    counts = await pool.fetch("SELECT trajectory_id, events FROM archived_trajectories WHERE day = $1 ORDER BY 1", OLD)
    assert [tuple(row) for row in counts] == [(f"old-{number}", 4) for number in range(5)]
    await keeper(pool, object_store).cycle()  # nothing is left to do
    assert await state(pool, OLD) == found


async def test_a_day_stays_while_a_trajectory_of_it_is_open_and_says_so(pool: asyncpg.Pool) -> None:
    await make(pool, OLD)
    await store_play(pool, dated(play("open", ended=False), OLD))
    objects = MemoryObjectStore()
    await keeper(pool, objects).cycle()
    found = await state(pool, OLD)
    assert (found.state, found.blocked) == ("open", "trajectories: 1 open")
    assert list(objects.list("")) == []
    await pool.execute("UPDATE trajectories SET status = 'incomplete', revision = 1, last_ingested_at = '2020-01-01'")
    await keeper(pool, objects).cycle()
    found = await state(pool, OLD)
    assert (found.state, found.rows, found.blocked) == ("dropped", 3, None)


async def test_an_empty_day_goes_too(pool: asyncpg.Pool) -> None:
    await make(pool, OLD)
    objects = MemoryObjectStore()
    await keeper(pool, objects).cycle()
    assert (await state(pool, OLD)).state == "dropped"
    assert await archived(pool, objects) == []


class Killed(BaseException):
    """Nothing in the code under test handles it: as good as a SIGKILL, short of the connection."""


class Faulty:
    """Counts every step towards something outside, and dies at a chosen one."""

    def __init__(self, dies_at: int | None) -> None:
        self.steps = 0
        self._dies_at = dies_at

    def step(self) -> None:
        self.steps += 1
        if self.steps == self._dies_at:
            raise Killed

    def wrap(self, target: Any, methods: tuple[str, ...]) -> Any:
        faulty = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                inner = getattr(target, name)
                if name not in methods:
                    return inner

                def called(*args: Any, **more: Any) -> Any:
                    faulty.step()  # dies before it
                    return inner(*args, **more)

                return called

        return Wrapped()


async def run_until_it_dies(pool: asyncpg.Pool, objects: ObjectStore, dies_at: int | None) -> int:
    """One cycle that dies before its n-th statement or call of the store; return how many there were."""
    faulty = Faulty(dies_at)
    under_test = keeper(pool, faulty.wrap(objects, ("put", "get", "download", "exists", "list", "delete")))
    real = days.only_keeper

    @days.asynccontextmanager
    async def watched(pool: asyncpg.Pool, task: int) -> AsyncIterator[Any]:
        async with real(pool, task) as conn:
            yield faulty.wrap(conn, ("execute", "fetch", "fetchrow", "fetchval", "transaction"))

    days.only_keeper = watched  # type: ignore[assignment]
    try:
        await under_test.cycle()
    except Killed:
        pass
    finally:
        days.only_keeper = real
    return faulty.steps


async def test_whoever_dies_at_whatever_step_the_next_one_completes_the_day(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_PART_EVENTS", 3)
    monkeypatch.setattr(days, "_PAGE", 2)
    await make(pool, OLD)
    want = [await store_settled(pool, "t-0", OLD)]
    everything = MemoryObjectStore()
    await reset(pool, want[0])
    steps = await run_until_it_dies(pool, everything, None)
    assert steps > 25
    bodies = {i.key: everything.get(i.key) for i in everything.list("")}
    for dies_at in range(1, steps + 1):
        await reset(pool, want[0])
        objects = MemoryObjectStore()
        await run_until_it_dies(pool, objects, dies_at)
        found = await state(pool, OLD)
        present = await pool.fetchval("SELECT count(*) FROM events WHERE trajectory_id = 't-0'")
        assert present == (0 if found.state == "dropped" else 4), (dies_at, found)
        await keeper(pool, objects).cycle()
        found = await state(pool, OLD)
        assert (found.state, found.rows) == ("dropped", 4), (dies_at, found)
        assert [parse(body) for body in await archived(pool, objects)] == want[0]
        assert {i.key: objects.get(i.key) for i in objects.list("")} == bodies, dies_at
        assert await pool.fetchval("SELECT sum(events) FROM archived_trajectories") == 4


async def reset(pool: asyncpg.Pool, events: Any) -> None:
    """The day as it was before."""
    await pool.execute(f"DROP TABLE IF EXISTS {partition(OLD)}")
    await pool.execute("TRUNCATE events, trajectories, archived_trajectories, event_days")
    await make(pool, OLD)
    await store_play(pool, events)
    await pool.execute("UPDATE events SET ingested_at = '2020-01-01'")
    await pool.execute("UPDATE trajectories SET last_ingested_at = '2020-01-01', closed_at = '2020-01-01'")


async def test_the_archive_is_the_condition_an_archive_that_lost_a_file_is_written_anew(pool: asyncpg.Pool) -> None:
    await make(pool, OLD)
    events = await store_settled(pool, "t", OLD)
    objects = MemoryObjectStore()
    async with pool.acquire() as conn:
        assert await days.seal(conn, OLD, datetime.now(UTC)) is None
    reader = await pool.acquire()
    await reader.execute("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE")  # as an export does
    await keeper(pool, objects).cycle()
    assert (await state(pool, OLD)).state == "archived"
    assert await pool.fetchval("SELECT count(*) FROM events") == 4
    await reader.execute("ROLLBACK")
    await pool.release(reader)
    objects.delete(naming.day_data(OLD, 0))
    await keeper(pool, objects).cycle()
    assert (await state(pool, OLD)).state == "dropped"
    assert await archived(pool, objects) == [dump(event) for event in events]


async def test_what_the_store_did_not_keep_is_not_dropped(pool: asyncpg.Pool) -> None:
    class Forgetful(MemoryObjectStore):
        def download(self, key: str, path: Any) -> None:
            raise PoisonError("missing_object", f"no object {key}")

    await make(pool, OLD)
    await store_settled(pool, "t", OLD)
    with pytest.raises(TransientError, match="reads back damaged"):
        await keeper(pool, Forgetful()).cycle()
    assert (await state(pool, OLD)).state == "sealed"
    assert await pool.fetchval("SELECT count(*) FROM events") == 4


async def test_two_archivers_do_it_once(pool: asyncpg.Pool) -> None:
    await make(pool, *(days_ago(ago) for ago in range(40, 46)))
    for ago in range(40, 46):
        await store_settled(pool, f"t-{ago}", days_ago(ago))
    objects = MemoryObjectStore()
    await asyncio.gather(*(keeper(pool, objects).cycle() for _ in range(3)))
    await keeper(pool, objects).cycle()
    assert {day.state for day in await days.days(pool)} == {"dropped"}
    assert await pool.fetchval("SELECT count(*) FROM archived_trajectories") == 6


async def test_an_archiver_that_is_killed_is_continued_by_the_next(
    database: str, object_store: S3ObjectStore, service_process: ServiceProcesses
) -> None:
    pool = await connect(database)
    await make(pool, *(days_ago(ago) for ago in range(40, 60)))
    events = [dump(e) for ago in range(40, 60) for e in await store_settled(pool, f"t-{ago}", days_ago(ago))]
    rules = {"FLYWHEEL_ARCHIVER_RETENTION_DAYS": "30", "FLYWHEEL_ARCHIVER_RETENTION_CHECK_S": "0.2"}
    archiver = service_process("archiver", **rules)
    await archiver.start(ready=False)

    async def count(*states: str) -> int:
        return sum(day.state in states for day in await days.days(pool))

    await eventually(lambda: count("sealed", "archived", "dropped"))
    archiver.kill()
    assert await pool.fetchval("SELECT count(*) FROM events") == 4 * await count("open", "sealed", "archived")
    await archiver.start()

    async def done() -> bool:
        return await count("dropped") == 20

    await eventually(done)
    kept = [body for ago in range(40, 60) for body in await archived(pool, object_store, days_ago(ago))]
    assert sorted(kept) == sorted(events)
    _, shown = archiver.get("/metrics")
    assert 'flywheel_archiver_event_days{state="dropped"} 20.0' in shown
    assert await archiver.stop() == 0
    await pool.close()
