"""The baseline: the recorder's job as one would write it with Faust first, in batches, with pydantic and SQL.

It does less than the recorder does: no dead letters, no conflicts, no announcements; and ``take`` loses what was in
hand when it dies. ``python -m bench.recorder.faust_pipeline`` reads FLYWHEEL_KAFKA and FLYWHEEL_POSTGRES.
"""

from __future__ import annotations

import hashlib
import tempfile
from typing import Any

import asyncpg
import faust

from flywheel.events import Event, LLMCall, Step, TrajectoryEnded, parse
from flywheel.settings import Connections
from flywheel.topics import EVENTS

_EVENT = """
INSERT INTO events (event_id, trajectory_id, seq, kind, step, agent_id, time, digest, src_partition, src_offset, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (event_id) DO NOTHING
"""
_TRAJECTORY = """
INSERT INTO trajectories AS t
    (trajectory_id, agent_id, window_id, first_event_at, events, steps, llm_calls, reward_sum, status)
VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8)
ON CONFLICT (trajectory_id) DO UPDATE SET events = t.events + 1, steps = t.steps + excluded.steps,
    llm_calls = t.llm_calls + excluded.llm_calls, reward_sum = t.reward_sum + excluded.reward_sum,
    status = CASE WHEN excluded.status = 'open' THEN t.status ELSE excluded.status END
"""


def main() -> None:
    """Consume until the process is asked to stop."""
    connections = Connections.load()
    app = faust.App(
        "bench-faust", broker=f"kafka://{connections.kafka}", value_serializer="raw", web_enabled=False,
        datadir=tempfile.mkdtemp(), consumer_auto_offset_reset="earliest", topic_disable_leader=True,
    )  # fmt: skip
    topic = app.topic(EVENTS.name, value_serializer="raw")
    pools: list[asyncpg.Pool] = []

    @app.agent(topic)
    async def record(stream: Any) -> None:
        if not pools:
            pools.append(await asyncpg.create_pool(connections.postgres, min_size=1, max_size=1))
        async for batch in stream.take(1000, within=0.05):
            events = [(raw, parse(raw)) for raw in batch]
            async with pools[0].acquire() as connection, connection.transaction():
                await connection.executemany(_EVENT, [_event_row(raw, event) for raw, event in events])
                await connection.executemany(_TRAJECTORY, [_trajectory_row(event) for _, event in events])

    app.finalize()
    worker = faust.Worker(app, loglevel="WARNING")
    worker.execute_from_commandline()


def _event_row(raw: bytes, event: Event) -> tuple[object, ...]:
    return (
        event.event_id, event.trajectory_id, event.seq, event.kind, getattr(event, "step", None), event.agent_id,
        event.time, hashlib.blake2b(raw, digest_size=16).digest(), 0, 0, raw.decode(),
    )  # fmt: skip


def _trajectory_row(event: Event) -> tuple[object, ...]:
    return (
        event.trajectory_id, event.agent_id, event.time.strftime("%Y-%m-%dT%H"), event.time,
        int(isinstance(event, Step)), int(isinstance(event, LLMCall)),
        (isinstance(event, Step) and event.reward) or 0.0,
        event.status if isinstance(event, TrajectoryEnded) else "open",
    )  # fmt: skip


if __name__ == "__main__":
    main()
