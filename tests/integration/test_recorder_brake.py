"""The brake on the real stack: an attacker's garbage pauses the recorder, in one piece, until a person releases it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

import pytest
import pytest_asyncio

from flywheel.settings import Connections
from flywheel.storage import postgres
from flywheel.storage.brakes import Brakes, BrakeState, brakes_on, release
from flywheel.stream.offsets import read_offsets
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS
from tests.support.processes import ROOT, ServiceProcess, ServiceProcesses, service_environment
from tests.support.recording import publish, read, trajectory
from tests.support.waiting import eventually
from tests.support.world import rows

pytestmark = [pytest.mark.stack, pytest.mark.slow]

GARBAGE = 20_000
SETTINGS = {
    "FLYWHEEL_RECORDER_DEAD_WINDOW": "2000",
    "FLYWHEEL_RECORDER_BATCH_EVENTS": "500",
    "FLYWHEEL_RECORDER_IDLE_CLOSE_S": "3600",
}


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


async def command(environment: dict[str, str], *arguments: str, status: int = 0) -> str:
    """Return what ``flywheel dead`` printed. Raises AssertionError for another exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flywheel.cli.main", "dead", *arguments, cwd=ROOT, env=service_environment(environment),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == status, out.decode()
    return out.decode()


async def buried(connections: Connections) -> int:
    """Return how many dead letters there are."""
    return (await read_offsets(connections.kafka, [EVENTS.dead])).kept(EVENTS.dead) or 0


async def next_offsets(database: str) -> int:
    """Return how many records are done with."""
    ((done,),) = await rows(database, "SELECT coalesce(sum(next_offset), 0)::bigint FROM stream_offsets")
    return done


async def paused(recorder: ServiceProcess) -> str:
    """Return why it is paused, once it is."""

    def why() -> str:
        status, body = recorder.get("/readyz")
        return json.loads(body)["problems"].get(f"brake {EVENTS.name}", "") if status == 503 else ""

    return await eventually(why)


def metric(recorder: ServiceProcess, name: str) -> float:
    """Return the sum of a metric's samples."""
    lines = recorder.get("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + " ", name + "{")))


async def test_an_attacker_pauses_the_recorder_and_every_record_ends_in_one_place(
    connections: Connections, database: str, environment: dict[str, str], producer: Producer,
    service_process: ServiceProcesses,
) -> None:  # fmt: skip
    good = [trajectory(f"good-{n}", steps=8) for n in range(60)]
    events = [event for one in good for event in one]
    garbage = [b"garbage %d" % n for n in range(GARBAGE)]

    recorder = await service_process("recorder", **SETTINGS).start()
    await publish(producer, events[: len(events) // 2])
    rng = random.Random(4)
    rest = iter(events[len(events) // 2 :])
    for start in range(0, GARBAGE, 500):  # good ones among it, all the way
        sent = [await producer.send(EVENTS.name, f"k{rng.random()}", one) for one in garbage[start : start + 500]]
        await publish(producer, islice(rest, 20))
        await asyncio.gather(*sent)
    await publish(producer, rest)

    why = await paused(recorder)
    assert "of the last 2,000 records are dead letters (not_json" in why
    assert "flywheel dead release" in why
    assert recorder.get("/healthz")[0] == 200
    before, done = await buried(connections), await next_offsets(database)
    assert before < 4000
    assert metric(recorder, "flywheel_brake") == 1
    await eventually(lambda: metric(recorder, "flywheel_lag_records") > GARBAGE / 2)  # as of the next look
    blocked = 'flywheel_blocked_seconds_total{on="brake",topic="flywheel.events"}'
    for name in (blocked, "flywheel_lag_seconds"):  # both grow while it lasts
        then = metric(recorder, name)
        await eventually(lambda name=name, then=then: metric(recorder, name) > then)

    # Neither a restart, nor a replica, nor the rebalances that both bring, go on.
    assert await recorder.stop() == 0
    await recorder.start(ready=False)
    replica = await service_process("recorder", **SETTINGS).start(ready=False)
    await asyncio.gather(paused(recorder), paused(replica))
    recorder.kill()
    await eventually(lambda: metric(replica, "flywheel_lag_records") > GARBAGE / 2)  # it has all partitions, and waits
    assert (await buried(connections), await next_offsets(database)) == (before, done)
    await recorder.start(ready=False)
    await paused(recorder)

    # Nothing happens unasked, and elsewhere; then it is drained.
    shown = await command(environment, "release", status=1)
    assert "not_json" in shown and "Invalid JSON" in shown and EVENTS.name in shown
    assert "nothing is paused" in await command(environment, "release", "--topic", "flywheel.acks", "--yes")
    assert (await buried(connections), await next_offsets(database)) == (before, done)
    assert "released" in await command(environment, "release", "--topic", EVENTS.name, "--allow", "30000", "--yes")
    total = len(events) + GARBAGE

    async def drained() -> bool:
        return await next_offsets(database) == total

    await eventually(drained)
    await asyncio.gather(recorder.wait_ready(), replica.wait_ready())
    assert metric(recorder, "flywheel_brake") == 0

    letters = await read(connections.kafka, EVENTS.dead, GARBAGE)
    assert sorted(letter.value or b"" for letter in letters) == sorted(garbage)
    assert await buried(connections) == GARBAGE
    stored = await rows(database, "SELECT count(*) AS events, count(DISTINCT event_id) AS ids FROM events")
    assert tuple(stored[0]) == (len(events), len(events))
    assert (await rows(database, "SELECT count(*) FROM trajectories WHERE missing = 0 AND status = 'completed'"))[0][
        0
    ] == len(good)
    ((released_by, share),) = await rows(database, "SELECT released_by, share FROM brakes")
    assert "@" in released_by and 0.5 < share <= 1
    assert (await recorder.stop(), await replica.stop()) == (0, 0)


async def test_a_paused_recorder_stops_at_once_and_the_gateway_says_that_it_is_paused(
    environment: dict[str, str], producer: Producer, service_process: ServiceProcesses, database: str
) -> None:
    await rows(database, "UPDATE brakes SET allowance = 0")  # what the last test's release left
    recorder = await service_process("recorder", **{**SETTINGS, "FLYWHEEL_RECORDER_DEAD_WINDOW": "100"}).start()
    await asyncio.gather(*[await producer.send(EVENTS.name, f"k{n}", b"garbage") for n in range(2000)])
    await paused(recorder)
    async with service_process("gateway") as gateway:

        def said() -> list[dict[str, Any]]:
            return json.loads(gateway.get("/api/v1/summary")[1])["paused"]

        (one,) = await eventually(said)
        assert (one["consumer"], one["topic"]) == ("flywheel-recorder", EVENTS.name)
        assert "is paused since" in gateway.get("/")[1]
    assert await recorder.stop() == 0
    assert '"paused by the brake"' in recorder.tail(2000)


async def test_a_brake_is_pulled_once_released_once_and_its_allowance_spent_once(database: str) -> None:
    pool = await postgres.connect(database)
    try:
        brakes, others = (Brakes(pool, consumer=name, topic="t") for name in ("one", "another"))
        assert await brakes.read() == BrakeState()
        for _ in range(2):
            await brakes.pull(0, "why", 0.75, 100, {"schema": 75}, [{"partition": 0, "message": "\ud83d\ude00 'x'"}])
        state = await brakes.read()
        assert (state.on, state.reason) == (True, "why")
        assert (await others.read()) == BrakeState()

        async with pool.acquire() as conn:
            (shown,) = [brake for brake in await brakes_on(conn) if brake.topic == "t"]
            assert (shown.id, shown.causes, shown.share) == (state.id, {"schema": 75}, 0.75)
            assert await release(conn, state.id, "me", 10)
            assert not await release(conn, state.id, "somebody else", 99)
        assert await brakes.read() == BrakeState(state.id, False, "why", 10)
        assert [await brakes.spend(state.id, 6) for _ in range(3)] == [True, True, False]

        await brakes.pull(0, "judged before the release", 0.9, 100, {}, [])
        assert not (await brakes.read()).on
        await brakes.pull(state.id, "again", 0.9, 100, {}, [])
        again = await brakes.read()
        assert again.on and again.id > state.id
    finally:
        await pool.close()
