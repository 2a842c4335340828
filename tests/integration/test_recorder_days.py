"""The recorder and time: partitions made ahead, events that come after their day was closed, silence by scenario."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
import pytest_asyncio

from flywheel.days import partition, today
from flywheel.events import TrajectoryStarted
from flywheel.settings import Connections
from flywheel.storage import days
from flywheel.stream.letter import PREFIX
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS
from tests.support.days import days_ago, id_of, make, state
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.recording import envelope, publish, read, trajectory
from tests.support.waiting import eventually

pytestmark = pytest.mark.stack

SEALED, DROPPED = days_ago(40), days_ago(41)


@pytest_asyncio.fixture(scope="module")
async def closed_days(pool: asyncpg.Pool) -> None:
    await make(pool, SEALED, DROPPED)
    async with pool.acquire() as conn:
        for day in (SEALED, DROPPED):
            assert await days.seal(conn, day, datetime.now(UTC)) is None
        await days.archived(conn, DROPPED, rows=0, size=0, strays=0, manifest="m", manifest_sha256="s")
        await days.drop(conn, await state(pool, DROPPED))


@pytest_asyncio.fixture(scope="module")
async def recorder(closed_days: None, service_process: ServiceProcesses) -> ServiceProcess:
    return await service_process(
        "recorder",
        FLYWHEEL_RECORDER_IDLE_CLOSE_S="3600",
        FLYWHEEL_RECORDER_IDLE_CLOSE_BY_SCENARIO='{"market-*": 3600, "market-fast-*": 1}',
        FLYWHEEL_RECORDER_DAYS_AHEAD="5",
    ).start()


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


async def test_partitions_are_made_ahead_and_take_the_events(
    recorder: ServiceProcess, producer: Producer, pool: asyncpg.Pool
) -> None:
    made = {day.day for day in await days.days(pool)}
    assert made >= {today() + timedelta(days=ahead) for ahead in range(-1, 6)}
    events = trajectory("dated")
    await publish(producer, events)

    async def stored() -> bool:
        return await pool.fetchval("SELECT events FROM trajectories WHERE trajectory_id = 'dated'") == len(events)

    await eventually(stored)
    assert await pool.fetchval(f"SELECT count(*) FROM {partition(today())} WHERE trajectory_id = 'dated'") == len(
        events
    )
    assert "flywheel_recorder_ahead_days 5.0" in recorder.get("/metrics")[1]


async def test_what_comes_after_its_day_was_closed_is_a_dead_letter_and_the_rest_is_stored(
    recorder: ServiceProcess, producer: Producer, pool: asyncpg.Pool, connections: Connections
) -> None:
    good = trajectory("good")
    late = [
        TrajectoryStarted(**envelope(f"late-{day}", 0, event_id=id_of(day)), scenario_id="s")
        for day in (SEALED, DROPPED, days_ago(42))
    ]
    await publish(producer, [*good[:3], *late, *good[3:]])

    async def stored() -> bool:
        sql = "SELECT sum(events) FROM trajectories WHERE trajectory_id = 'good' OR trajectory_id LIKE 'late-%'"
        return await pool.fetchval(sql) == len(good) + 1

    await eventually(stored)
    letters = await read(connections.kafka, EVENTS.dead, 2)
    assert {letter.key for letter in letters} == {f"late-{SEALED}".encode(), f"late-{DROPPED}".encode()}
    assert {dict(letter.headers)[f"{PREFIX}reason"] for letter in letters} == {b"expired"}
    # A day that never had a partition is none that was closed: its events live in the default one.
    assert await pool.fetchval("SELECT trajectory_id FROM events_default") == f"late-{days_ago(42)}"
    ids = [row["event_id"] for row in await pool.fetch("SELECT event_id FROM events WHERE trajectory_id = 'good'")]
    assert len(set(ids)) == len(good)


async def test_silence_is_judged_by_the_most_specific_scenario_that_fits(
    recorder: ServiceProcess, producer: Producer, pool: asyncpg.Pool
) -> None:
    scenarios = ["market-fast-1", "market-slow", "other", "market-fast-2"]
    starts = [TrajectoryStarted(**envelope(f"idle-{name}", 0), scenario_id=name) for name in scenarios]
    await publish(producer, starts)

    async def closed() -> list[str]:
        rows = await pool.fetch(
            "SELECT scenario_id FROM trajectories WHERE trajectory_id LIKE 'idle-%' AND status = 'incomplete'"
            " ORDER BY 1"
        )
        return [row["scenario_id"] for row in rows]

    async def fast_ones() -> bool:
        return await closed() == ["market-fast-1", "market-fast-2"]

    await eventually(fast_ones)
    open_ones = await pool.fetch(
        "SELECT scenario_id FROM trajectories WHERE status = 'open' AND trajectory_id LIKE 'idle-%'"
    )
    assert {row["scenario_id"] for row in open_ones} == {"market-slow", "other"}
