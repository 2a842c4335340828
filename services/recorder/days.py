"""The days of ``events``: their partitions are made ahead, and what comes too late for its day is a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from flywheel import metrics
from flywheel.days import today
from flywheel.errors import PoisonError
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, retry_in_place
from flywheel.storage import days
from flywheel.storage.postgres import transient
from flywheel.stream.positions import Rejected
from flywheel.waiting import first_of
from services.recorder.decode import Decoded

_log = get_logger(__name__)

_TASK = 0
_LOOK_EVERY_S = 600.0
_AGAIN_S = 10.0


async def make_ahead(pool: asyncpg.Pool, days_ahead: int) -> bool:
    """Make the partitions of yesterday, today and ``days_ahead`` days; whether all are there.

    Rows of a day without a partition go to the default one, so that nothing waits for this.
    """
    wanted = [today() + timedelta(days=ahead) for ahead in range(-1, days_ahead + 1)]
    async with days.only_keeper(pool, _TASK) as conn:
        if conn is not None:
            try:
                for day in wanted:
                    await days.make(conn, day)
            except asyncpg.LockNotAvailableError:
                _log.info("somebody reads events for long; partitions are made later")
    known = {day.day for day in await days.days(pool) if day.state == "open"}
    metrics.DAYS_AHEAD.set(sum(day > today() for day in known))
    return known.issuperset(wanted)


async def keep_making(pool: asyncpg.Pool, days_ahead: int, *, health: Health, stop: asyncio.Event) -> None:
    """Make partitions ahead until ``stop``."""
    while not stop.is_set():
        try:
            there = await retry_in_place(
                lambda: make_ahead(pool, days_ahead), transient=transient, health=health, check="postgres", stop=stop
            )
        except Stopped:
            return
        await first_of(stop, timeout=_LOOK_EVERY_S if there else _AGAIN_S)


async def too_late(pool: asyncpg.Pool, error: asyncpg.CheckViolationError, events: Sequence[Decoded]) -> Rejected:
    """Return which of ``events`` came when their day was over; the database refused them all with ``error``.

    Raises TransientError while a partition is being made, and ``error`` when it is about something else.
    """
    closed = await days.refused(pool, error, [event.row.event_id for event in events])
    return Rejected(
        {
            (event.row.src_partition, event.row.src_offset): PoisonError(
                "expired", f"its id is of {closed[event.row.event_id]}, a day that retention has closed"
            )
            for event in events
            if event.row.event_id in closed
        }
    )
