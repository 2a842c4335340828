"""Durable agents on the real stack: failing handlers, poison, kills and stops lose nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
import pytest_asyncio

from flywheel.health import Health
from flywheel.retry import Stopped
from flywheel.settings import Connections
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.stream.producer import Producer
from flywheel.topics import Topic
from tests.support.processes import ROOT, service_environment
from tests.support.recording import read
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = [pytest.mark.stack, pytest.mark.slow]

Start = Callable[[Topic], subprocess.Popen[bytes]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a worker process on a topic; what still runs is killed in the end."""
    running: list[subprocess.Popen[bytes]] = []

    def run(topic: Topic) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "tests.support.durable_worker", topic.name]
        env = service_environment(environment)
        with (tmp_path / "worker.log").open("ab") as log:
            running.append(subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True))
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest_asyncio.fixture
async def db(connections: Connections) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(connections.postgres, min_size=1, max_size=2) as pool:
        await pool.execute("DROP TABLE IF EXISTS handled")
        yield pool


async def send(connections: Connections, topic: Topic, values: list[str]) -> None:
    producer = Producer(connections.kafka)
    await producer.start()
    await asyncio.gather(*[await producer.send(topic.name, f"k{n}", v.encode()) for n, v in enumerate(values)])
    await producer.stop()


async def handled(db: asyncpg.Pool) -> set[str]:
    try:
        return {row["value"] for row in await db.fetch("SELECT value FROM handled WHERE partition >= 0")}
    except asyncpg.UndefinedTableError:
        return set()


async def until_handled(db: asyncpg.Pool, values: set[str], **limits: Any) -> None:
    async def look() -> bool:
        return values <= await handled(db)

    await eventually(look, **limits)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 40)


async def test_transient_failures_are_retried_and_poison_is_singled_out(
    connections: Connections, db: asyncpg.Pool, start: Start, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("durable", partitions=3)
    numbers = [str(n) for n in range(200)]
    sent = [*numbers[:50], "poison", *numbers[50:120], "flaky", *numbers[120:150], "poison", *numbers[150:]]
    await send(connections, topic, sent)
    process = start(topic)
    await until_handled(db, {*numbers, "flaky"})
    letters = await read(connections.kafka, topic.dead, 2)
    assert [letter.value for letter in letters] == [b"poison", b"poison"]
    assert {letter.header("flywheel-reason") for letter in letters} == {"poison"}
    assert "poison" not in await handled(db)
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0


async def test_kills_lose_nothing(
    connections: Connections, db: asyncpg.Pool, start: Start, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("durable", partitions=3)
    numbers = [str(n) for n in range(2000)]
    await send(connections, topic, numbers)
    for share in (0.1, 0.5):
        process = start(topic)

        async def reached(share: float = share) -> bool:
            return len(await handled(db)) > share * len(numbers)

        await eventually(reached, every=0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    start(topic)
    await until_handled(db, set(numbers))


async def test_sigterm_finishes_what_is_in_hand_and_commits_it(
    connections: Connections, db: asyncpg.Pool, start: Start, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("durable", partitions=3)
    numbers = [str(n) for n in range(1000)]
    await send(connections, topic, numbers)
    process = start(topic)

    async def begun() -> bool:
        return len(await handled(db)) > 200

    await eventually(begun, every=0.01)
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0
    assert len(await handled(db)) < len(numbers)
    start(topic)
    await until_handled(db, set(numbers))
    assert await db.fetchval("SELECT max(times) FROM handled WHERE partition >= 0") == 1  # nothing came twice


async def test_an_unexpected_error_ends_the_process_and_the_next_one_begins_there(
    connections: Connections, db: asyncpg.Pool, start: Start, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("durable", partitions=1)
    await send(connections, topic, ["1", "bug"])
    for _ in range(2):
        assert await ended(start(topic)) == 70


async def test_timers_run_beside_the_agents(
    db: asyncpg.Pool, start: Start, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    start(await fresh_topic("durable", partitions=1))

    async def ticked() -> bool:
        try:
            return (await db.fetchval("SELECT times FROM handled WHERE partition = -1") or 0) > 2
        except asyncpg.UndefinedTableError:
            return False

    await eventually(ticked)


async def test_a_missing_topic_is_made_with_as_many_copies_as_were_asked_for(
    connections: Connections, tmp_path: Path
) -> None:
    topic, health, stop = Topic(unique("copied"), "any", "nothing", 1), Health(), asyncio.Event()
    app = DurableApp(
        "copies", connections.kafka, replication=2, var=tmp_path, health=health, dead=cast(DeadLetters, None)
    )

    async def handle(records: object) -> None:
        raise AssertionError("it has no topic")

    app.agent(topic, handle)
    running = asyncio.create_task(app.run(stop))
    said = await eventually(lambda: health.ready_report().problems.get("kafka"))
    stop.set()
    assert said and "InvalidReplicationFactor" in said  # there is one broker
    with pytest.raises(Stopped):
        await running
