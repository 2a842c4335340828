"""Rewards that come later, on the real stack: from a published outcome to the total of each trajectory it judges."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.events import Action, Event, Step, TrajectoryEnded, TrajectoryStarted
from flywheel.messages import TrajectoryClosed
from flywheel.outcomes import Outcome, Rule
from flywheel.sdk import Recorder
from flywheel.settings import Connections
from flywheel.storage.brakes import brakes_on, release
from flywheel.stream.producer import Producer
from flywheel.topics import OUTCOMES, TRAJECTORIES
from tests.support.judged import outcome
from tests.support.processes import ServiceProcess, ServiceProcesses, service_environment
from tests.support.recording import STARTED, envelope, publish, read
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = pytest.mark.stack

BUY = Rule(action="buy", parameters={"market": "m-1"}, value=1.0)
#: What the killed recorder has to judge.
MANY = 3000


@pytest_asyncio.fixture(scope="module")
async def recorder(service_process: ServiceProcesses) -> ServiceProcess:
    return await service_process("recorder", FLYWHEEL_RECORDER_IDLE_CLOSE_S="3600").start()


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


@pytest_asyncio.fixture(scope="module")
async def db(connections: Connections) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(connections.postgres, min_size=1, max_size=2) as pool:
        yield pool


def play(name: str, scenario: str, *, steps: int = 3, **changes: Any) -> list[Event]:
    """A closed trajectory that buys in every step, without rewards of its own."""
    events: list[Event] = [TrajectoryStarted(**envelope(name, 0, **changes), scenario_id=scenario)]
    for step in range(steps):
        action = Action(name="buy", parameters={"market": "m-1"}, success=True)
        events.append(Step(**envelope(name, step + 1, **changes), step=step, action=action))
    return [*events, TrajectoryEnded(**envelope(name, steps + 1, **changes))]


async def say(producer: Producer, *outcomes: Outcome) -> None:
    for one in outcomes:
        await producer.send_and_wait(OUTCOMES.name, one.key, one.dump())


async def total(db: asyncpg.Pool, name: str, wanted: float | None, **columns: Any) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        row = await db.fetchrow("SELECT * FROM trajectories WHERE trajectory_id = $1", name)
        fits = row and row["total_reward"] == wanted and all(row[key] == value for key, value in columns.items())
        return row if fits else None

    row = await eventually(look)
    assert row is not None
    return row


async def announced(connections: Connections, name: str, revision: int) -> TrajectoryClosed:
    async def look() -> TrajectoryClosed | None:
        seen = 1
        while True:
            try:
                records = await read(connections.kafka, TRAJECTORIES.name, seen, within=2)
            except TimeoutError:
                return None
            messages = [TrajectoryClosed.parse(r.value) for r in records if r.key == name.encode()]
            if found := [message for message in messages if message.revision == revision]:
                return found[0]
            seen += 50 if len(records) > 50 else 1

    found = await eventually(look)
    assert found is not None
    return found


async def test_an_outcome_judges_what_was_played_before_between_and_after(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    scenario, before, between, after = unique("s"), unique("t"), unique("t"), unique("t")
    await publish(producer, play(before, scenario))
    begun = play(between, scenario)
    await publish(producer, begun[1:2])  # a step of a trajectory whose start is yet to come
    await total(db, before, None, status="completed")
    await total(db, between, None, steps=1)
    await say(producer, outcome(BUY, scenario_id=scenario))
    await total(db, before, 3.0, revision=2)
    await publish(producer, [*begun[:1], *begun[2:]])
    await publish(producer, play(after, scenario))
    await total(db, between, 3.0, status="completed")
    await total(db, after, 3.0, status="completed", revision=1)
    assert (await announced(connections, before, 2)).total_reward == 3.0


async def test_an_outcome_of_a_window_judges_its_trajectories_days_later_whatever_their_scenario(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    names, hour = [unique("t") for _ in range(3)], STARTED - timedelta(days=9)
    for name in names:
        await publish(producer, play(name, unique("s"), time=hour))
    other = unique("t")
    await publish(producer, play(other, unique("s"), time=hour + timedelta(hours=1)))
    await total(db, other, None, status="completed")
    await say(producer, outcome(BUY, window_id=f"{hour:%Y-%m-%dT%H}", time=hour + timedelta(days=5)))
    for name in names:
        await total(db, name, 3.0, revision=2)
    assert (await total(db, other, None))["revision"] == 1


async def test_corrections_replace_and_a_retraction_removes_whatever_is_repeated(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    name, scenario = unique("t"), unique("s")
    await publish(producer, play(name, scenario))
    first = outcome(BUY, scenario_id=scenario)
    second = outcome(BUY.model_copy(update={"value": -4.0}), scenario_id=scenario, revision=2)
    await say(producer, first)
    await total(db, name, 3.0)
    await say(producer, second, first, second)
    row = await total(db, name, -12.0)
    assert await db.fetchval("SELECT count(*) FROM reward_entries WHERE trajectory_id = $1", name) == 3
    await say(producer, outcome(scenario_id=scenario, revision=3, retracted=True))
    await total(db, name, None, revision=row["revision"] + 1)
    assert await db.fetchval("SELECT count(*) FROM reward_entries WHERE trajectory_id = $1", name) == 0


async def test_garbage_is_a_dead_letter_and_holds_up_nobody(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool, connections: Connections
) -> None:
    name, scenario = unique("t"), unique("s")
    await publish(producer, play(name, scenario))
    good = outcome(BUY, scenario_id=scenario)
    conflict = good.model_copy(update={"rules": []})
    for value in (b"no json", b'{"subject": "m-1"}', good.dump(), conflict.dump()):
        await producer.send_and_wait(OUTCOMES.name, scenario, value)
    await total(db, name, 3.0)
    letters = await read(connections.kafka, OUTCOMES.dead, 3)
    reasons = [value or b"" for letter in letters for name, value in letter.headers if name == "flywheel-reason"]
    assert sorted(reasons) == [b"conflict", b"not_json", b"schema"]


async def test_the_sdk_and_the_command_line_publish_outcomes(
    recorder: ServiceProcess,
    producer: Producer,
    db: asyncpg.Pool,
    environment: dict[str, str],
    connections: Connections,
) -> None:
    name, scenario = unique("t"), unique("s")
    await publish(producer, play(name, scenario))
    async with Recorder("resolver", connections.kafka) as sdk:
        rules = [{"action": "buy", "value": 2}]
        assert sdk.outcome("m-1", source="sdk", scenario_id=scenario, rules=rules, facts={"resolved": True})
        assert not sdk.outcome("m-1", source="sdk", rules=rules)  # about nothing
        assert not sdk.outcome("m-1", source="sdk", scenario_id=scenario, facts={"text": "x" * 2**18})
        assert sdk.stats.dropped == {"invalid": 1, "too_large": 1}
    await total(db, name, 6.0)
    lines = f'{{"scenario_id": "{scenario}", "subject": "m-1", "source": "cli", "rules": [{{"value": 1}}]}}\n\n'

    def command(given: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "flywheel.cli.main", "outcome", "publish", "-"]
        return subprocess.run(
            words, input=given, env=service_environment(environment), capture_output=True, text=True, timeout=120
        )

    run = await asyncio.to_thread(command, lines)
    assert (run.returncode, run.stdout) == (0, "published 1 outcomes\n"), run.stderr
    await total(db, name, 9.0)
    bad = lines + '{"scenario_id": "s", "subject": "m-1", "source": "cli", "rules": [{"valeu": 1}]}\n'
    run = await asyncio.to_thread(command, bad)
    assert run.returncode == 1
    assert "line 3: schema: " in run.stderr
    assert "rules.0.valeu" in run.stderr


async def test_killed_while_it_applies_an_outcome_it_goes_on_where_it_was_and_adds_nothing_twice(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    scenario, prefix = unique("s"), unique("many")
    for first in range(0, MANY, 500):
        await publish(
            producer, [e for n in range(first, first + 500) for e in play(f"{prefix}-{n}", scenario, steps=1)]
        )

    async def closed() -> bool:
        return await db.fetchval("SELECT count(*) FROM trajectories WHERE scenario_id = $1", scenario) == MANY

    await eventually(closed)
    await say(producer, outcome(BUY, scenario_id=scenario))
    judged = "SELECT count(*) FROM trajectories WHERE scenario_id = $1 AND total_reward = 1"

    async def some() -> int:
        return await db.fetchval(judged, scenario)

    seen = await eventually(some, every=0.002)
    recorder.kill()
    assert 0 < seen < MANY
    await recorder.start()

    async def everyone() -> bool:
        return await db.fetchval(judged, scenario) == MANY

    await eventually(everyone)
    figures = await db.fetchrow(
        "SELECT max(revision) AS revision, max(outcome_count) AS entries FROM trajectories WHERE scenario_id = $1",
        scenario,
    )
    assert tuple(figures or ()) == (2, 1)

    async def nothing_left() -> bool:
        return await db.fetchval("SELECT count(*) FROM outcome_work") == 0

    await eventually(nothing_left)


async def test_both_topics_read_again_from_the_start_change_nothing(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    async def everything() -> list[Any]:
        tables = ("trajectories", "reward_entries", "outcomes", "events")
        return [
            await db.fetchval(f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t")
            for table in tables
        ]

    await recorder.stop()
    before = await everything()
    ends = await db.fetch("SELECT topic, partition, next_offset FROM stream_offsets ORDER BY 1, 2")
    await db.execute("UPDATE stream_offsets SET next_offset = 0")
    await recorder.start()

    async def read_again() -> bool:
        return await db.fetch("SELECT topic, partition, next_offset FROM stream_offsets ORDER BY 1, 2") == ends

    await eventually(read_again)
    await recorder.stop()
    assert await everything() == before


async def test_a_hundred_outcomes_that_are_garbage_pause_the_outcomes_and_no_events(
    recorder: ServiceProcess, producer: Producer, db: asyncpg.Pool
) -> None:
    await recorder.start()
    for number in range(100):
        await producer.send_and_wait(OUTCOMES.name, f"k{number}", b"garbage")

    def paused() -> bool:
        return f"outcomes brake {OUTCOMES.name}" in recorder.get("/readyz")[1]

    await eventually(paused)
    name = unique("t")
    await publish(producer, play(name, unique("s")))
    await total(db, name, None, status="completed")
    async with db.acquire() as conn:
        (brake,) = await brakes_on(conn)
        assert (brake.topic, brake.records) == (OUTCOMES.name, 100)
        assert await release(conn, brake.id, "tester", 200)
    await eventually(lambda: recorder.get("/readyz")[0] == 200)
    await recorder.stop()
