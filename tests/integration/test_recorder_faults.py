"""The recorder when something dies: nothing lost, nothing doubled, and it recovers by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from flywheel.events import Event
from flywheel.settings import Connections
from flywheel.stream.producer import Producer
from tests.support.processes import ServiceProcesses
from tests.support.proxy import Proxy
from tests.support.recording import publish, trajectory
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from deploy.local.stack import LocalStack

pytestmark = [pytest.mark.stack, pytest.mark.slow]

STEPS = 98  # 199 events a trajectory


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


async def recorded(connections: Connections, prefix: str) -> tuple[int, int, int, float]:
    """Return events, events counted in trajectories, closed trajectories, and reward, of ids that begin so."""
    conn = await asyncpg.connect(connections.postgres)
    try:
        events = await conn.fetchval("SELECT count(*) FROM events WHERE trajectory_id LIKE $1", f"{prefix}%")
        row = await conn.fetchrow(
            "SELECT coalesce(sum(events), 0), count(*) FILTER (WHERE status = 'completed'),"
            " coalesce(sum(total_reward), 0) FROM trajectories WHERE trajectory_id LIKE $1",
            f"{prefix}%",
        )
        assert row is not None
        return events, *row
    finally:
        await conn.close()


async def all_there(connections: Connections, prefix: str, trajectories: Sequence[Sequence[Event]]) -> None:
    """Wait until everything is recorded; fail if it is not recorded exactly once."""
    total = sum(len(events) for events in trajectories)

    async def done() -> bool:
        return (await recorded(connections, prefix))[0] >= total

    await eventually(done)
    want = (total, total, len(trajectories), 0.5 * STEPS * len(trajectories))
    assert await recorded(connections, prefix) == want


async def test_kills_in_the_middle_of_the_stream_lose_and_double_nothing(
    connections: Connections, producer: Producer, service_process: ServiceProcesses
) -> None:
    trajectories = [trajectory(f"killed-{n}", steps=STEPS) for n in range(100)]
    recorder = await service_process("recorder", FLYWHEEL_RECORDER_BATCH_EVENTS="300").start()
    sending = asyncio.create_task(publish(producer, [event for events in trajectories for event in events]))
    for share in (0.05, 0.3, 0.6):

        async def reached(share: float = share) -> bool:
            return (await recorded(connections, "killed-"))[0] > share * 100 * len(trajectories[0])

        await eventually(reached, every=0.01)
        recorder.kill()
        await recorder.start(ready=False)
    await sending
    await all_there(connections, "killed-", trajectories)
    assert await recorder.stop() == 0


async def test_two_processes_share_the_partitions_and_one_may_die(
    connections: Connections, producer: Producer, service_process: ServiceProcesses
) -> None:
    first = await service_process("recorder", FLYWHEEL_RECORDER_BATCH_EVENTS="200").start()
    second = await service_process("recorder", FLYWHEEL_RECORDER_BATCH_EVENTS="200").start()
    trajectories = [trajectory(f"shared-{n}", steps=STEPS) for n in range(40)]
    sending = asyncio.create_task(publish(producer, [event for events in trajectories for event in events]))

    async def some() -> bool:
        return (await recorded(connections, "shared-"))[0] > 1000

    await eventually(some, every=0.01)
    first.kill()
    await sending
    await all_there(connections, "shared-", trajectories)
    assert await second.stop() == 0


async def test_a_database_that_is_away_is_waited_out_with_readiness_false(
    connections: Connections, producer: Producer, service_process: ServiceProcesses
) -> None:
    parts = urlsplit(connections.postgres)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 5432)
    await proxy.mend()
    through = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"))
    trajectories = [trajectory(f"away-{n}", steps=STEPS) for n in range(10)]
    async with service_process("recorder", FLYWHEEL_POSTGRES=through) as recorder:
        await publish(producer, trajectories[0])
        await all_there(connections, "away-0", trajectories[:1])
        await proxy.cut()
        await publish(producer, [event for events in trajectories[1:] for event in events])
        await eventually(lambda: recorder.get("/readyz")[0] == 503)
        assert recorder.get("/healthz")[0] == 200  # restarting it would mend nothing
        assert (await recorded(connections, "away-"))[0] == len(trajectories[0])
        await proxy.mend()
        await all_there(connections, "away-", trajectories)
        await recorder.wait_ready()
        assert recorder.returncode is None
    await proxy.cut()


async def test_a_database_that_is_stopped_and_started_again_loses_nothing(
    stack: LocalStack, connections: Connections, producer: Producer, service_process: ServiceProcesses
) -> None:
    trajectories = [trajectory(f"stopped-{n}", steps=STEPS) for n in range(50)]
    async with service_process("recorder", FLYWHEEL_RECORDER_BATCH_EVENTS="200") as recorder:
        sending = asyncio.create_task(publish(producer, [event for events in trajectories for event in events]))

        async def some() -> bool:
            return (await recorded(connections, "stopped-"))[0] > 500

        await eventually(some, every=0.01)
        pid = stack.parts["postgres"].pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)  # its fast shutdown; the stack starts it again
        await sending

        async def back() -> bool:
            try:
                await recorded(connections, "stopped-")
            except (OSError, asyncpg.PostgresError):
                return False
            return stack.parts["postgres"].pid != pid

        await eventually(back)
        await all_there(connections, "stopped-", trajectories)
        assert recorder.returncode is None


async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(
    stack: LocalStack, connections: Connections, producer: Producer, service_process: ServiceProcesses
) -> None:
    trajectories = [trajectory(f"broker-{n}", steps=STEPS) for n in range(20)]
    async with service_process("recorder") as recorder:
        await publish(producer, [event for events in trajectories[:10] for event in events])
        pid = stack.parts["kafka"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)  # the stack starts it again
        await publish(producer, [event for events in trajectories[10:] for event in events])
        await all_there(connections, "broker-", trajectories)
        assert recorder.returncode is None
