"""Events of other days than today, and what retention needs to see of their trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg

from flywheel.days import bounds, today
from flywheel.events import Event
from flywheel.ids import uuid7
from flywheel.storage import days
from flywheel.storage.days import Day
from tests.support.recorded import play, store_play

_E = TypeVar("_E", bound=Event)
_RANDOM = (1 << 80) - 1


def days_ago(count: int) -> date:
    return today() - timedelta(days=count)


def id_of(day: date, minute: int = 0) -> UUID:
    """Return a new id that was minted on that day."""
    ahead = minute * 60_000 << 80
    return UUID(int=bounds(day)[0].int + ahead | uuid7().int & _RANDOM)


def dated(events: Sequence[Event], day: date) -> list[Event]:
    """Return the events with ids of that day, in the order of ``seq``."""
    return [event.model_copy(update={"event_id": id_of(day, number)}) for number, event in enumerate(events)]


async def make(pool: asyncpg.Pool, *wanted: date) -> None:
    async with pool.acquire() as conn:
        for day in wanted:
            await days.make(conn, day)


async def state(pool: asyncpg.Pool, day: date) -> Day:
    (found,) = [known for known in await days.days(pool) if known.day == day]
    return found


async def store_settled(pool: asyncpg.Pool, trajectory_id: str, day: date) -> list[Event]:
    """Store a trajectory that was played and closed on that day, and that nobody waits for."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    events = dated(play(trajectory_id, start=noon, agent=trajectory_id), day)
    await store_play(pool, events)
    await settle(pool, trajectory_id, noon)
    return events


async def settle(pool: asyncpg.Pool, trajectory_id: str, when: datetime) -> None:
    """Have the database believe that nothing changed since then."""
    await pool.execute(
        "UPDATE trajectories SET first_ingested_at = $2, last_ingested_at = $2, closed_at = $2"
        " WHERE trajectory_id = $1",
        trajectory_id,
        when,
    )
