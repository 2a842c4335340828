"""The outbox on the real stack: published after the commit, in order within a key, whoever relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import pytest_asyncio

from flywheel import tracing
from flywheel.messages import Command
from flywheel.settings import Connections
from flywheel.storage.postgres import connect
from flywheel.stream.outbox import OutboxRelay, enqueue, enqueue_many
from flywheel.stream.producer import Producer
from flywheel.topics import Topic
from tests.support.recording import read
from tests.support.tracing import text, traced
from tests.support.waiting import eventually

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture(scope="module")
async def pool(connections: Connections) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(connections.postgres, max_size=8)
    yield pool
    await pool.close()


def command(number: int) -> Command:
    return Command(command_id=f"c-{number}", action="train_now", target="t", actor="test")


async def test_two_relays_publish_everything_in_order_within_a_key(
    pool: asyncpg.Pool, connections: Connections, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("outbox", partitions=3)
    stop, producers, relays = asyncio.Event(), [Producer(connections.kafka) for _ in range(2)], []
    for producer in producers:
        await producer.start()
        relays.append(OutboxRelay(pool, producer))
    running = [asyncio.create_task(relay.run(stop)) for relay in relays]
    for number in range(300):
        async with pool.acquire() as conn, conn.transaction():
            await enqueue(conn, topic, f"k{number % 5}", command(number))
        relays[number % 2].nudge()
    records = await read(connections.kafka, topic.name, 300)
    stop.set()
    await asyncio.gather(*running, *(producer.stop() for producer in producers))
    for key in range(5):
        numbers = [int(Command.parse(r.value).command_id[2:]) for r in records if r.key == f"k{key}".encode()]
        assert numbers == list(range(key, 300, 5))
    assert await pool.fetchval("SELECT count(*) FROM outbox WHERE topic = $1", topic.name) == 0


async def test_what_is_rolled_back_is_never_published(
    pool: asyncpg.Pool, connections: Connections, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("outbox")
    with pytest.raises(ZeroDivisionError):
        async with pool.acquire() as conn, conn.transaction():
            await enqueue(conn, topic, "k", command(1))
            raise ZeroDivisionError
    async with pool.acquire() as conn, conn.transaction():
        await enqueue(conn, topic, "k", command(2))
    producer = Producer(connections.kafka)
    await producer.start()
    assert await OutboxRelay(pool, producer).drain()
    await producer.stop()
    (only,) = await read(connections.kafka, topic.name, 1)
    assert Command.parse(only.value).command_id == "c-2"


async def test_a_relay_publishes_what_another_left_behind(
    pool: asyncpg.Pool, connections: Connections, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("outbox")
    async with pool.acquire() as conn, conn.transaction():
        await enqueue(conn, topic, "k", command(3))
    producer, stop = Producer(connections.kafka), asyncio.Event()
    await producer.start()
    running = asyncio.create_task(OutboxRelay(pool, producer).run(stop))

    async def empty() -> bool:
        return not await pool.fetchval("SELECT count(*) FROM outbox")

    await eventually(empty)
    stop.set()
    await running
    await producer.stop()
    assert len(await read(connections.kafka, topic.name, 1)) == 1


async def test_the_trace_of_who_enqueued_crosses_the_database_to_the_topic(
    pool: asyncpg.Pool, connections: Connections, fresh_topic: Callable[..., Awaitable[Topic]]
) -> None:
    topic = await fresh_topic("outbox")
    others = f"00-{'a' * 32}-{'b' * 16}-01"
    with traced() as spans:
        async with pool.acquire() as conn, conn.transaction():
            await enqueue(conn, topic, "untraced", command(1))
            with tracing.span("work"):
                await enqueue(conn, topic, "current", command(2))
                await enqueue_many(conn, topic, [("theirs", command(3), others), ("nobody's", command(4), None)])
                await enqueue_many(conn, topic, [])
    producer = Producer(connections.kafka)
    await producer.start()
    assert await OutboxRelay(pool, producer).drain()
    await producer.stop()
    sent = {(r.key or b"").decode(): r.header("traceparent") for r in await read(connections.kafka, topic.name, 4)}
    current, theirs, work = spans.all()
    assert sent == {"untraced": None, "current": text(current), "theirs": text(theirs), "nobody's": None}
    assert current.parent == work.context
    assert text(theirs)[:35] == others[:35]
    assert work.context and [link.context.span_id for link in theirs.links] == [work.context.span_id]
