"""Outcomes: what is consumed and done.

``flywheel.outcomes`` → rows of ``outcomes``; beside that, the entries that they give to the steps they judge, across
windows, a portion of trajectories at a time, from where the last one, or a process that died, left off. Trajectories
that this changed are announced anew. What cannot be stored goes to ``flywheel.outcomes.dead``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from flywheel import metrics
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, beating, retry_in_place
from flywheel.storage.postgres import transient
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.positions import Item, Move
from flywheel.stream.record import Record
from flywheel.waiting import first_of
from services.recorder.outcomes.decode import Decoded, decode
from services.recorder.outcomes.store import OutcomeStore

_log = get_logger(__name__)

#: How often outcomes are looked for that another process stored, and left, in seconds.
_LOOK_S = 1.0
_BEAT = "apply"


class Outcomes:
    """The sink of the outcomes' loop, and the loop that applies them."""

    def __init__(self, store: OutcomeStore, relay: OutboxRelay, health: Health) -> None:
        self._store = store
        self._relay = relay
        self._health = health
        self._news = asyncio.Event()

    def decode(self, record: Record) -> Decoded:
        """Return the record as an outcome. Raises PoisonError."""
        return decode(record)

    async def positions(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Return where to read on."""
        return await self._store.positions(beginnings)

    async def write(self, items: Sequence[Item[Decoded]], moves: Sequence[Move]) -> None:
        """Store a batch in one transaction."""
        choice = await self._store.write([item.value for item in items if item.value is not None], moves)
        for change, number in choice.counts.items():
            metrics.OUTCOMES.labels(change).inc(number)
        if choice.newest:
            self._news.set()

    async def apply(self, stop: asyncio.Event) -> None:
        """Apply what is stored until ``stop`` is set. Outages of the database are waited out."""
        while not stop.is_set():
            self._news.clear()
            try:
                await retry_in_place(
                    lambda: beating(self._drain(stop), health=self._health, beat=_BEAT),
                    transient=transient,
                    health=self._health,
                    check="postgres",
                    stop=stop,
                    beat=_BEAT,
                )
            except Stopped:
                break
            await first_of(stop, self._news, timeout=_LOOK_S)
        self._health.retire(_BEAT)

    async def _drain(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            pending = await self._store.pending()
            metrics.OUTCOMES_PENDING.set(pending.count)
            metrics.OUTCOMES_PENDING_AGE.set(pending.oldest_s)
            if not pending.count or (revised := await self._store.apply_some()) is None:
                return
            metrics.TRAJECTORIES_REVISED.inc(len(revised))
            if revised:
                self._relay.nudge()
                _log.debug("outcomes applied", revised=len(revised), first=revised[0].trajectory_id)
