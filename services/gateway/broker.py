"""What the broker says of dead letters and lag, looked up now and then beside the requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg

from flywheel.errors import FatalError, TransientError
from flywheel.log import get_logger
from flywheel.stream.cluster import Cluster
from flywheel.stream.offsets import Offsets, read_offsets
from flywheel.topics import ALL_TOPICS, SOURCES
from flywheel.waiting import first_of
from services.gateway import registry, store

_log = get_logger(__name__)

#: How old an answer may be, in seconds.
LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class BrokerWatch:
    """Keeps the latest answer; None while the broker is away. Reading recorded data does not depend on it."""

    kafka: Cluster
    pool: asyncpg.Pool
    dead_letters: dict[str, int] | None = None
    lag: dict[str, int] | None = None
    _let_in: bool = False

    async def run(self, stop: asyncio.Event) -> None:
        """Look every few seconds until asked to stop. Raises FatalError when the broker refuses us from the start."""
        while not stop.is_set():
            try:
                await self.look()
                self._let_in = True
            except Exception as error:
                refused_by_now = isinstance(error, FatalError) and self._let_in  # a password is being changed, say
                if not isinstance(error, TransientError) and not refused_by_now and store.away(error) is None:
                    raise
                self.dead_letters = self.lag = None
                _log.warning("no word from the broker", error=repr(error))
            await first_of(stop, timeout=LOOK_EVERY_S)

    async def look(self) -> None:
        """Ask once. Raises TransientError while the broker is away, and errors of the database as they are."""
        offsets = await read_offsets(self.kafka, [topic.name for topic in ALL_TOPICS])
        kept = {topic.dead: offsets.kept(topic.dead) for topic in SOURCES}
        self.dead_letters = {name: count for name, count in kept.items() if count is not None}
        self.lag = await self._lag(offsets)

    async def _lag(self, offsets: Offsets) -> dict[str, int]:
        """Return the lag by consumer and topic. The recorder's own table is truer than what it tells the broker."""
        reached = dict(offsets.groups)
        for consumer, recorded in (await registry.recorded_offsets(self.pool)).items():
            reached[consumer] = reached.get(consumer, {}) | recorded
        return {
            f"{group} {topic}": count
            for group, partitions in sorted(reached.items())
            for topic, count in sorted(offsets.behind(partitions).items())
        }
