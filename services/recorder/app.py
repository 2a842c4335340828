"""The recorder: what it consumes and does.

``flywheel.events`` → rows of ``events`` and ``trajectories``; a trajectory that ended, or changed afterwards, is
announced on ``flywheel.trajectories`` through the outbox. What cannot be stored goes to ``flywheel.events.dead``.
Beside that, every few seconds: trajectories that went silent are closed as incomplete; and now and then the partitions
of the coming days are made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import asyncpg

from flywheel import metrics, tracing
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, retry_in_place
from flywheel.settings import RecorderSettings
from flywheel.storage.postgres import transient
from flywheel.stream.events_loop import EventsLoop
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.positions import Item, Move
from flywheel.stream.record import Record
from flywheel.tracing import messaging
from flywheel.waiting import first_of
from services.recorder.days import too_late
from services.recorder.decode import Decoded, decode
from services.recorder.idle import Horizon, IdleRules
from services.recorder.store import Store, Written

_log = get_logger(__name__)


class Recorder:
    """The sink of the events loop: decodes, stores, counts, and has what was announced published at once."""

    def __init__(self, store: Store, relay: OutboxRelay, pool: asyncpg.Pool) -> None:
        self._store = store
        self._pool = pool
        self._relay = relay

    def decode(self, record: Record) -> Decoded:
        """Return the record as a row. Raises PoisonError."""
        return decode(record)

    async def positions(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return where to read on."""
        return await self._store.positions(beginnings)

    async def write(self, items: Sequence[Item[Decoded]], moves: Sequence[Move]) -> None:
        """Store a batch in one transaction."""
        events = [item.value for item in items if item.value is not None]
        try:
            with metrics.WRITE_SECONDS.time():
                written = await self._store.write(events, moves, _traces(items) if tracing.on() else {})
        except asyncpg.CheckViolationError as error:
            raise await too_late(self._pool, error, events) from error
        self._count(written)

    def _count(self, written: Written) -> None:
        for kind, count in Counter([event.row.kind for event in written.inserted]).items():
            metrics.EVENTS_INSERTED.labels(kind).inc(count)
        metrics.EVENTS_DUPLICATE.inc(written.duplicates)
        tracing.say(
            {
                "flywheel.events.inserted": len(written.inserted),
                "flywheel.events.duplicate": written.duplicates,
                "flywheel.trajectories.announced": len(written.announced),
            }
        )
        for message in written.announced:
            if message.revision == 1:
                metrics.TRAJECTORIES_CLOSED.labels(message.status.value).inc()
            else:
                metrics.TRAJECTORIES_REVISED.inc()
        if written.announced:
            self._relay.nudge()
        _log.debug(
            "stored", inserted=len(written.inserted), duplicates=written.duplicates, announced=len(written.announced)
        )


def _traces(items: Sequence[Item[Decoded]]) -> dict[str, str]:
    """Return the context of each trajectory that is traced: of its first record here."""
    found: dict[str, str] = {}
    for item in items:
        if item.record.headers and item.value is not None and item.value.delta.trajectory_id not in found:
            context = messaging.context_of(item.record)
            if context is not None:
                found[item.value.delta.trajectory_id] = context
    return found


async def close_silent(
    store: Store, relay: OutboxRelay, loop: EventsLoop[Decoded], settings: RecorderSettings,
    *, health: Health, stop: asyncio.Event,
) -> None:  # fmt: skip
    """Close trajectories that went silent, until ``stop``; never while events wait in Kafka that may belong to them,
    in whichever process's partition: another one may be behind, or paused.
    """
    horizon = Horizon()
    idle = IdleRules(settings.idle_close_s, settings.idle_close_by_scenario)
    interval = min(5.0, idle.shortest_s / 4)

    async def look() -> None:
        metrics.TRAJECTORIES_OPEN.set(await store.open_trajectories())
        now = time.monotonic()
        ends = await loop.ends()
        until = horizon.look(now, ends, await store.reached()) if ends is not None else None
        while until is not None and (closed := await store.close_idle(idle, time.monotonic() - until)):
            metrics.TRAJECTORIES_CLOSED.labels("incomplete").inc(len(closed))
            relay.nudge()
            _log.info("closed silent trajectories", count=len(closed), first=closed[0].trajectory_id)

    while not stop.is_set():
        try:
            await retry_in_place(look, transient=transient, health=health, check="postgres", stop=stop)
        except Stopped:
            return
        await first_of(stop, timeout=interval)
