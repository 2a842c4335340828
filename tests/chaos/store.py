"""Reads what a storm left: rows, dead letters, announcements; and how far the recorder got meanwhile."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing

import asyncpg

from flywheel.messages import TrajectoryClosed
from flywheel.stream.dead import PREFIX
from flywheel.stream.follow import follow
from flywheel.stream.offsets import Offsets, read_offsets
from flywheel.stream.record import Record
from flywheel.topics import EVENTS, TRAJECTORIES
from tests.chaos.reconcile import DeadLetter, EventRow, Evidence, Tally, TrajectoryRow

_EVENTS = """
SELECT event_id::text, encode(sha256(convert_to(body, 'UTF8')), 'hex') AS sha256, trajectory_id, seq FROM events
"""
_TRAJECTORIES = """
SELECT trajectory_id, revision, status, events, steps, llm_calls, provider_accesses, rewards, reward_count, reward_sum,
       outcome_count, outcome_sum, seq_max, missing
  FROM trajectories
"""
_TIMEOUT_S = 120.0


async def stored_offsets(dsn: str, topic: str = EVENTS.name) -> dict[int, int]:
    """Return how far the topic's records of each partition are stored.

    Raises OSError or asyncpg's errors while it is away.
    """
    conn = await asyncpg.connect(dsn, timeout=5, command_timeout=5)
    try:
        rows = await conn.fetch("SELECT partition, next_offset FROM stream_offsets WHERE topic = $1", topic)
    finally:
        await conn.close(timeout=5)
    return {row["partition"]: row["next_offset"] for row in rows}


async def waiting_announcements(dsn: str) -> int:
    """Return how many messages wait in the outbox."""
    conn = await asyncpg.connect(dsn, timeout=5, command_timeout=_TIMEOUT_S)
    try:
        return await conn.fetchval("SELECT count(*) FROM outbox")
    finally:
        await conn.close(timeout=5)


async def waiting_outcomes(dsn: str) -> int:
    """Return how many scenarios have yet to be judged by an outcome that is stored."""
    conn = await asyncpg.connect(dsn, timeout=5, command_timeout=_TIMEOUT_S)
    try:
        return await conn.fetchval("SELECT count(*) FROM outcome_work")
    finally:
        await conn.close(timeout=5)


async def lag(kafka: str, dsn: str, topic: str = EVENTS.name) -> int:
    """Return how many events, or outcomes, in Kafka are not stored yet."""
    offsets = await read_offsets(kafka, [topic])
    stored = await stored_offsets(dsn, topic)
    return sum(end - stored.get(number, 0) for (_, number), end in offsets.end.items())


async def collect(kafka: str, dsn: str) -> Evidence:
    """Read everything."""
    conn = await asyncpg.connect(dsn, timeout=5, command_timeout=_TIMEOUT_S)
    try:
        events = [EventRow(*row) for row in await conn.fetch(_EVENTS)]
        trajectories = [
            TrajectoryRow(row[0], row[1], Tally(*tuple(row)[2:])) for row in await conn.fetch(_TRAJECTORIES)
        ]
    finally:
        await conn.close(timeout=5)
    offsets = await read_offsets(kafka, [EVENTS.dead, TRAJECTORIES.name])
    dead = [_letter(record) async for record in everything(kafka, EVENTS.dead, offsets)]
    announced: dict[str, set[int]] = defaultdict(set)
    async for record in everything(kafka, TRAJECTORIES.name, offsets):
        message = TrajectoryClosed.parse(record.value)
        announced[message.trajectory_id].add(message.revision)
    return Evidence(events, trajectories, dead, announced)


async def everything(kafka: str, topic: str, offsets: Offsets) -> AsyncIterator[Record]:
    """Yield what ``topic`` held when ``offsets`` were read."""
    left = {number: end for (name, number), end in offsets.end.items() if name == topic}
    left = {number: end for number, end in left.items() if end > offsets.first.get((topic, number), 0)}
    if not left:
        return
    async with aclosing(follow(kafka, topic, from_beginning=True)) as records:
        async for record in records:
            if record.partition in left:
                yield record
                if record.offset + 1 >= left[record.partition]:
                    del left[record.partition]
            if not left:
                return


def _letter(record: Record) -> DeadLetter:
    digest = hashlib.sha256(record.value or b"").hexdigest()
    return DeadLetter(record.header("chaos-name"), record.header(f"{PREFIX}reason") or "", digest)
