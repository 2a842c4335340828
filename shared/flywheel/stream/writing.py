"""Stores batches for an events loop: the brake asked first, retried in place, dead letters before offsets, a batch that
the database refuses taken apart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic

from flywheel import metrics, tracing
from flywheel.errors import PoisonError
from flywheel.health import Health
from flywheel.retry import retry_in_place
from flywheel.storage.postgres import transient
from flywheel.stream.age import Ages
from flywheel.stream.blocked import Stopwatch
from flywheel.stream.brake import Brake
from flywheel.stream.dead import DeadLetters
from flywheel.stream.handling import as_poison
from flywheel.stream.positions import Item, Move, Rejected, Sink, Value, moves_of, spans_of
from flywheel.topics import Topic
from flywheel.tracing import messaging


class BatchWriter(Generic[Value]):
    """Brings every item to its one place: the sink, or the dead letters; only then do its offsets move."""

    def __init__(
        self, topic: Topic, sink: Sink[Value], dead: DeadLetters, brake: Brake, health: Health, *, group: str,
        beat: str, batch_records: int, ages: Ages[int],
    ) -> None:  # fmt: skip
        self._topic = topic.name
        self._group = group
        self._sink = sink
        self._dead = dead
        self._brake = brake
        self._health = health
        self._beat = beat
        self._batch_records = batch_records
        self._ages = ages
        self._batch: Sequence[Item[Value]] = ()
        self.watch = Stopwatch(topic.name)

    async def store(
        self, items: Sequence[Item[Value]], stored: dict[int, int], stop: asyncio.Event, ours: Callable[[], bool]
    ) -> None:
        """Store the items, in order, and note in ``stored`` how far the offsets moved; ``ours`` says whether they may
        still be.

        Raises Fenced and Revoked (nothing more is ours to write), Stopped, and what is a bug.
        """
        with messaging.consuming(self._topic, self._group, (item.record for item in items), len(items)):
            await self._store_and_count(items, stored, stop, ours)

    async def _store_and_count(
        self, items: Sequence[Item[Value]], stored: dict[int, int], stop: asyncio.Event, ours: Callable[[], bool]
    ) -> None:
        started = time.monotonic()
        self._batch = items
        spans = spans_of(items)
        self._ages.handling({number: span.first.timestamp_ms for number, span in spans.items()})
        try:
            await self._store(items, stored, stop, ours)
        except BaseException:
            self._ages.abandoned()
            self._brake.abandon()
            raise
        self._brake.settle(items)
        self._ages.durable({number: span.last.timestamp_ms for number, span in spans.items()})
        exemplar = tracing.exemplar()
        metrics.HANDLE_SECONDS.labels(self._topic).observe(time.monotonic() - started, exemplar)
        metrics.BATCH_RECORDS.labels(self._topic).observe(len(items))
        metrics.BATCH_UTILISATION.labels(self._topic).observe(len(items) / self._batch_records)
        metrics.CONSUMED.labels(self._topic).inc(len(items))
        now = time.time()
        for stamp, count in Counter([item.record.timestamp_ms for item in items]).items():
            metrics.DURABLE_SECONDS.observe(max(0.0, now - stamp / 1000), count, exemplar)

    async def _store(
        self, items: Sequence[Item[Value]], stored: dict[int, int], stop: asyncio.Event, ours: Callable[[], bool]
    ) -> None:
        while True:
            with self.watch.on("brake"):
                await self._brake.permit(self._batch, stop=stop, ours=ours)
            await self._bury(items, stop)
            moves = moves_of(spans_of(items), stored)
            good = [item for item in items if item.poison is None]

            async def write(good: list[Item[Value]] = good, moves: list[Move] = moves) -> None:
                with self.watch.on("write"):
                    await self._sink.write(good, moves)

            try:
                with self.watch.on("retry"):
                    await retry_in_place(
                        write, transient=transient, health=self._health, check="postgres", stop=stop, beat=self._beat
                    )
            except Rejected as rejected:
                self._mark(good, rejected.reasons)
            except Exception as error:
                poison = as_poison(error)
                if poison is None or not good:
                    raise
                if len(items) > 1:
                    middle = len(items) // 2
                    await self._store(items[:middle], stored, stop, ours)
                    await self._store(items[middle:], stored, stop, ours)
                    return
                self._mark(good, {(items[0].record.partition, items[0].record.offset): poison})
            else:
                stored.update((move.partition, move.next) for move in moves)
                return

    @staticmethod
    def _mark(items: Sequence[Item[Value]], reasons: dict[tuple[int, int], PoisonError]) -> None:
        for item in items:
            item.poison = reasons.get((item.record.partition, item.record.offset))

    async def _bury(self, items: Sequence[Item[Value]], stop: asyncio.Event) -> None:
        async def put(item: Item[Value], poison: PoisonError) -> None:
            await retry_in_place(
                lambda: self._dead.put(item.record, poison), health=self._health, check="dead_letters", stop=stop,
                beat=self._beat,
            )  # fmt: skip
            item.buried = True

        waiting = [(item, item.poison) for item in items if item.poison is not None and not item.buried]
        if waiting:
            with self.watch.on("bury"):
                await asyncio.gather(*(put(item, poison) for item, poison in waiting))
