"""How long after an agent published an event a query sees it, at a steady rate."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator

from bench.recorder.traffic import trajectories
from bench.recorder.world import World, connected
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS

_SAMPLED = 50
_TICK_S = 0.01
_WARM_S = 3.0
_SEEN = "SELECT event_id FROM events WHERE event_id = ANY($1::uuid[])"


async def queryable_ms(world: World, per_s: int, seconds: float) -> dict[str, float]:
    """Return p50, p95 and p99 in ms, of every fiftieth event, from ``send`` to the query that returned it.

    The first seconds, while caches and connections warm, are not counted. The poll adds up to 5 ms.
    """
    waiting: dict[str, float] = {}
    delays: list[float] = []
    done = asyncio.Event()
    events = list(trajectories("latency", round(per_s * (seconds + _WARM_S))))
    async with world.recorders(1) as (recorder,):
        await recorder.wait_ready()
        producer = Producer(world.kafka)
        await producer.start()
        counted_from = time.perf_counter() + _WARM_S
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_look(world, waiting, delays, counted_from, done))
            await _send(producer, iter(events), per_s, waiting)
            await producer.stop()
            done.set()
    cuts = statistics.quantiles(delays, n=100, method="inclusive")
    return {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1)}


async def _send(producer: Producer, events: Iterator[tuple[str, bytes]], per_s: int, waiting: dict[str, float]) -> None:
    began = time.perf_counter()
    for sent, (key, value) in enumerate(events):
        if sent % _SAMPLED == 0:
            waiting[json.loads(value)["event_id"]] = time.perf_counter()
        await producer.send(EVENTS.name, key, value)
        ahead_s = sent / per_s - (time.perf_counter() - began)
        if ahead_s > _TICK_S:
            await asyncio.sleep(ahead_s)


async def _look(
    world: World, waiting: dict[str, float], delays: list[float], counted_from: float, done: asyncio.Event
) -> None:
    async with connected(world.postgres) as connection:
        while waiting or not done.is_set():
            found = await connection.fetch(_SEEN, list(waiting)) if waiting else ()
            now = time.perf_counter()
            for row in found:
                since = waiting.pop(str(row["event_id"]))
                if since >= counted_from:
                    delays.append((now - since) * 1000)
            await asyncio.sleep(0.005)
