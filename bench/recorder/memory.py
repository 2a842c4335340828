"""Memory of the recorder while trajectories are open: it must be that of its batches, not of the trajectories."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench.recorder.traffic import start
from bench.recorder.world import World, connected, reached, resident_mb

_DURABLE = "SELECT sum(next_offset)::bigint FROM stream_offsets"


async def resident(world: World, open_trajectories: Sequence[int]) -> list[float]:
    """Return one recorder's resident MB once each of these numbers of trajectories, rising, is open."""
    out: list[float] = []
    opened = 0
    async with world.recorders(1) as (recorder,), connected(world.postgres) as connection:
        await recorder.wait_ready()
        for number in open_trajectories:
            await world.publish(start(f"open-{n:07d}") for n in range(opened, number))
            opened = number
            await reached(connection, _DURABLE, number)
            assert await connection.fetchval("SELECT count(*) FROM trajectories WHERE status = 'open'") == number
            await asyncio.sleep(3)
            out.append(round(resident_mb(recorder.pid), 1))
    return out
