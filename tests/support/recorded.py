"""Rows as the services leave them, written straight into a database, for tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from flywheel.events import Action, Event, LLMCall, Message, Step, TrajectoryEnded, TrajectoryStarted, dump
from flywheel.storage.postgres import Connection
from flywheel.trajectory import Trajectory, assemble

START = datetime(2026, 11, 23, 4, 0, tzinfo=UTC)


def play(
    trajectory_id: str,
    *,
    reward: float | None = 0.5,
    agent: str = "agent-1",
    version: str | None = "1.0.0",
    texts: str = "hello",
    start: datetime = START,
    ended: bool = True,
    **started: Any,
) -> list[Event]:
    """One turn of play; ``texts`` is put wherever an agent may write what it likes."""
    common: dict[str, Any] = {"trajectory_id": trajectory_id, "agent_id": agent}
    events: list[Event] = [
        TrajectoryStarted(
            **common, seq=0, time=start, model_version=version, metadata={"note": texts},
            **{"scenario_id": "scenario-1", "group_id": "group-1", **started},
        ),
        LLMCall(
            **common, seq=1, time=start + timedelta(seconds=1), step=0, model="tiny",
            messages=[Message(role="user", content=texts)], response=texts, reasoning=texts,
            prompt_token_ids=[1, 2], completion_token_ids=[3, 4], completion_logprobs=[-0.1, -0.2],
        ),
        Step(
            **common, seq=2, time=start + timedelta(seconds=2), step=0, observation={"seen": texts}, reasoning=texts,
            action=Action(name="buy", parameters={"what": texts}, success=True), reward=reward, done=True,
        ),
    ]  # fmt: skip
    if ended:
        last = start + timedelta(seconds=3)
        events.append(TrajectoryEnded(**common, seq=3, time=last, final_pnl=reward, error=texts))
    return events


async def store_play(conn: Connection | asyncpg.Pool, events: Sequence[Event]) -> Trajectory:
    """Insert the events of one trajectory and its row; return it whole."""
    whole = assemble(events)
    whole = whole.model_copy(update={"revision": int(whole.ended_at is not None)})
    await conn.executemany(
        """INSERT INTO events (event_id, trajectory_id, seq, kind, step, agent_id, time, digest, src_partition,
                               src_offset, body)
           VALUES ($1, $2, $3::integer, $4, $5, $6, $7, $8, 0, $3::integer, $9)""",
        [
            (
                event.event_id, event.trajectory_id, event.seq, event.kind, getattr(event, "step", None),
                event.agent_id, event.time, hashlib.blake2b(dump(event), digest_size=16).digest(), dump(event).decode(),
            )
            for event in events
        ],
    )  # fmt: skip
    calls = list(whole.all_llm_calls())
    values = {
        "trajectory_id": whole.trajectory_id,
        "agent_id": whole.agent_id,
        "scenario_id": whole.scenario_id,
        "group_id": whole.group_id,
        "split": whole.split,
        "channel": whole.channel,
        "model_version": whole.model_version,
        "window_id": whole.window_id,
        "first_event_at": whole.first_event_at,
        "started_at": whole.started_at,
        "ended_at": whole.ended_at,
        "status": whole.status.value,
        "stated_failure": whole.failure.value if whole.failure else None,
        "error": whole.error,
        "events": len(events),
        "steps": len(whole.steps),
        "llm_calls": len(calls),
        "untrainable_calls": sum(not call.trainable for call in calls),
        "reward_sum": whole.total_reward or 0.0,
        "reward_count": int(whole.total_reward is not None),
        "final_pnl": whole.final_pnl,
        "seq_max": max(event.seq for event in events),
        "revision": whole.revision,
    }
    places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    await conn.execute(f"INSERT INTO trajectories ({', '.join(values)}) VALUES ({places})", *values.values())
    return whole


async def store_row(conn: asyncpg.Connection | asyncpg.Pool, table: str, **values: Any) -> None:
    """Insert one row."""
    places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    await conn.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", *values.values())
