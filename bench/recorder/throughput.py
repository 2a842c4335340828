"""Events a second, from Kafka to durable rows: the recorder's processes, the limit of COPY, a plain Faust pipeline."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from bench.recorder.traffic import trajectories
from bench.recorder.world import World, connected, cpu_seconds, reached
from deploy.local.supervisor import die_with_parent
from flywheel.events import parse
from flywheel.settings import RecorderSettings
from services.recorder.copying import COLUMNS
from tests.support.processes import ROOT, service_environment

_DURABLE = "SELECT sum(next_offset)::bigint FROM stream_offsets"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@dataclass(frozen=True, slots=True)
class Rate:
    """A throughput and what it cost."""

    per_s: float
    cpu_us: float
    """Processor time of our processes, for one event."""


async def recorder(world: World, events: int, processes: int) -> Rate:
    """Record ``events`` that wait in Kafka, with that many processes, and time it.

    They are held back by a lock until each has its partitions, so that neither starting nor rebalancing is timed.
    """
    await world.publish(trajectories("bench", events))
    async with connected(world.postgres) as connection, connected(world.postgres) as other:
        hold = other.transaction()
        await hold.start()
        await other.execute("LOCK TABLE stream_offsets IN ACCESS EXCLUSIVE MODE")
        async with world.recorders(processes) as running:
            await reached(connection, _WAITING, processes)
            await asyncio.sleep(4)  # the group settles
            before = sum(cpu_seconds(process.pid) for process in running)
            began = time.perf_counter()
            await hold.commit()
            ended = await reached(connection, _DURABLE, events)
            cpu = sum(cpu_seconds(process.pid) for process in running) - before
        assert await connection.fetchval("SELECT count(*) FROM events") == events
    return Rate(events / (ended - began), cpu / events * 1e6)


async def copy_limit(world: World, events: int) -> Rate:
    """COPY the same rows, decoded before the clock starts, into the same table, as the recorder batches them."""
    batch = RecorderSettings().batch_events
    source = trajectories("bench", events)
    taken, cpu = 0.0, 0.0
    async with connected(world.postgres) as connection:
        offset = 0
        while rows := [_row(value, offset + n) for n, (_, value) in enumerate(islice(source, 10 * batch))]:
            offset += len(rows)
            began, used = time.perf_counter(), time.process_time()
            for at in range(0, len(rows), batch):
                async with connection.transaction():
                    await connection.copy_records_to_table(
                        "events", records=rows[at : at + batch], columns=COLUMNS
                    )  # fmt: skip
            taken += time.perf_counter() - began
            cpu += time.process_time() - used
    return Rate(events / taken, cpu / events * 1e6)


async def faust_pipeline(world: World, events: int, logs: Path) -> Rate:
    """Record the same events with :mod:`bench.recorder.faust_pipeline`; its start is not timed."""
    await world.publish(trajectories("bench", events))
    with (logs / "faust.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.recorder.faust_pipeline", cwd=ROOT, stdout=log, stderr=log,
            env=service_environment(world.env), preexec_fn=die_with_parent(signal.SIGKILL),
        )  # fmt: skip
    try:
        async with connected(world.postgres) as connection:
            count = "SELECT count(*) FROM events"
            began = await reached(connection, count, 1)
            before, used = await connection.fetchval(count) or 0, cpu_seconds(process.pid)
            ended = await reached(connection, count, events, every_s=0.2)
            used = cpu_seconds(process.pid) - used
        return Rate((events - before) / (ended - began), used / (events - before) * 1e6)
    finally:
        process.terminate()
        await process.wait()


def _row(value: bytes, offset: int) -> tuple[Any, ...]:
    event = parse(value)
    return (
        event.event_id, event.trajectory_id, event.seq, event.kind, getattr(event, "step", None), event.agent_id,
        event.time, blake2b(value, digest_size=16).digest(), 0, offset, value.decode(),
    )  # fmt: skip
