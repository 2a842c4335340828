"""The loop for the topic with tens of thousands of records a second: plain aiokafka, offsets stored with the data.

Kafka's group decides who reads which partition; where to read comes from the sink, in whose transactions the offsets
move. So a record is durable and counted, or it is not and comes again; the offset committed to Kafka only feeds lag
monitors. The next batch is fetched and decoded while the last one is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from flywheel import metrics
from flywheel.errors import FatalError, PoisonError, TransientError
from flywheel.health import Health
from flywheel.log import get_logger
from flywheel.retry import Stopped, beating, retry_in_place
from flywheel.storage.postgres import transient
from flywheel.stream._kafka import grouped_consumer, mapped, to_record
from flywheel.stream.age import Ages
from flywheel.stream.blocked import Stopwatch
from flywheel.stream.brake import Brake, Kept, Revoked
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.positions import Fenced, Item, Sink, Value
from flywheel.stream.probe import Probe
from flywheel.stream.reach import cause
from flywheel.stream.record import Record
from flywheel.stream.share import DeadShare
from flywheel.stream.writing import BatchWriter
from flywheel.topics import Topic

_log = get_logger(__name__)

#: A batch is full at this many bytes of values, whatever its count: memory is bounded by it.
_BATCH_BYTES = 32 * 1024 * 1024
_DECODE_CHUNK = 200
_WAIT_S = 1.0
_ENDS_S = 5.0
#: A broker that is away makes no fetch fail, it only brings nothing. Failing for this long means that the client is
#: broken.
_FETCH_FAILS_S = 60.0
_BEAT = "events"


@dataclass(slots=True)
class _Assignment:
    """The partitions we own since the last rebalance: what was read of each, and what is stored. Dropped as a whole."""

    read: dict[int, int] = field(default_factory=dict)
    stored: dict[int, int] = field(default_factory=dict)
    fenced: bool = False


class EventsLoop(ConsumerRebalanceListener, Generic[Value]):
    """Reads one topic as a member of ``group`` and hands it to a sink in batches of at most ``batch_records``.

    Transient errors of sink or broker are waited out in place, partitions kept; a record that can never be stored
    goes to the dead letters, acknowledged there before its offset moves. When their share passes the limit, or the
    brake is on already, it pauses in place. Raises FatalError when the stored offsets do not belong to this topic.
    """

    def __init__(
        self, kafka: Cluster | str, topic: Topic, group: str, sink: Sink[Value], *, dead: DeadLetters, share: DeadShare,
        brakes: Kept, health: Health, batch_records: int, batch_wait_ms: int,
    ) -> None:  # fmt: skip
        self._kafka = Cluster.of(kafka)
        self._topic = topic
        self._group = group
        self._sink = sink
        ages = Ages[int]()
        self._brake = Brake(brakes, share, topic, health, beat=_BEAT)
        self._writer = BatchWriter(
            topic, sink, dead, self._brake, health, group=group, beat=_BEAT, batch_records=batch_records, ages=ages
        )
        self._reading = Stopwatch(topic.name)
        self._health = health
        self._batch_records = batch_records
        self._wait_s = batch_wait_ms / 1000
        self._stop = asyncio.Event()
        self._consumer: AIOKafkaConsumer | None = None
        self._owned: frozenset[int] | None = None  # set by the group, until the loop has taken it over
        self._assignment = _Assignment()
        self._failing_since: float | None = None
        watches = (self._reading, self._writer.watch)
        self._probe = Probe(self._kafka, topic, health, lambda: self._assignment.stored, ages, watches)

    @property
    def lag(self) -> int | None:
        """Records in our partitions that are not stored yet; None while unknown."""
        return self._probe.lag

    async def ends(self) -> dict[int, int] | None:
        """Return where every partition of the topic ends, those of other processes too; None while nobody can say."""
        consumer = self._consumer
        numbers = consumer.partitions_for_topic(self._topic.name) if consumer is not None else None
        if consumer is None or not numbers:
            return None
        partitions = [TopicPartition(self._topic.name, number) for number in numbers]
        try:
            ends = await asyncio.wait_for(consumer.end_offsets(partitions), _ENDS_S)
        except (KafkaError, TimeoutError):
            return None
        return {partition.partition: end for partition, end in ends.items()}

    async def run(self, stop: asyncio.Event) -> None:
        """Read until ``stop`` is set, then store what is in hand and leave the group."""
        self._stop = stop
        consumer = self._consumer = await self._join()
        probe = asyncio.create_task(self._beside(consumer), name="probe")
        try:
            await self._consume(consumer, probe)
            await self._probe.commit(consumer)
        except Stopped:
            _log.warning("stopped with records in hand; they come again", topic=self._topic.name)
        finally:
            probe.cancel()
            await consumer.stop()
            self._health.retire(_BEAT)

    async def _beside(self, consumer: AIOKafkaConsumer) -> None:
        """Watch the broker and the brake until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe.run(consumer, lambda: self._owned is None))
            tasks.create_task(self._brake.watch())

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Forget what we owned; the group calls it. What is being written either wins its offsets or is fenced."""
        self._owned, self._assignment = None, _Assignment()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Note what we own; the group calls it. The loop looks up where to read before anything is read."""
        self._owned, self._assignment = frozenset(tp.partition for tp in assigned), _Assignment()

    async def _join(self) -> AIOKafkaConsumer:
        async def start() -> AIOKafkaConsumer:
            consumer = grouped_consumer(self._kafka, self._group)
            try:
                await consumer.start()
            except (KafkaError, OSError) as error:
                await consumer.stop()
                raise await cause(self._kafka, error) from error
            consumer.subscribe([self._topic.name], listener=self)
            return consumer

        return await retry_in_place(start, health=self._health, check="kafka", stop=self._stop, beat=_BEAT)

    async def _consume(self, consumer: AIOKafkaConsumer, probe: asyncio.Task[None]) -> None:
        batch: list[Item[Value]] = []
        size, began = 0, 0.0
        source = self._assignment
        writing: asyncio.Task[None] | None = None
        try:
            while not self._stop.is_set():
                self._health.beat(_BEAT)
                if probe.done():
                    await probe  # it only ends by an error that nobody expected
                if batch or writing is not None:
                    self._probe.moved()
                if writing is not None and writing.done():
                    await writing
                    writing = None
                if self._assignment is not source or source.fenced or self._owned is not None:
                    if writing is not None:
                        await asyncio.wait({writing})
                        continue
                    batch, size = [], 0  # nothing of it is stored: whoever owns the partitions now reads it again
                    source = await self._take_over(consumer)
                full = len(batch) >= self._batch_records or size >= _BATCH_BYTES
                due = full or (bool(batch) and time.monotonic() - began >= self._wait_s)
                if due and writing is None:
                    writing = asyncio.create_task(self._store(source, batch), name="write")
                    batch, size = [], 0
                elif full and writing is not None:
                    await asyncio.wait({writing}, timeout=_WAIT_S)
                    continue
                records = await self._poll(consumer, self._batch_records - len(batch))
                if records and not batch:
                    began = time.monotonic()
                size += sum([len(record.value or b"") for record in records])
                batch += await self._decode(source, records)
        finally:
            if writing is not None:
                await asyncio.wait({writing})
        if writing is not None:
            await writing
        if batch and self._assignment is source:
            await self._store(source, batch)

    async def _take_over(self, consumer: AIOKafkaConsumer) -> _Assignment:
        """Seek every partition we own to its stored offset."""
        owned, assignment = self._owned, self._assignment
        if owned is None and not assignment.fenced:
            return assignment  # between two assignments: nothing is ours
        numbers = sorted(owned if owned is not None else assignment.stored)
        if assignment.fenced:
            assignment = self._assignment = _Assignment()
        partitions = [TopicPartition(self._topic.name, number) for number in numbers]
        consumer.pause(*[p for p in partitions if p in consumer.assignment()])
        positions: dict[int, int] = {}
        if partitions:
            begins, ends = await self._bounds(consumer, partitions)
            positions = await retry_in_place(
                lambda: beating(self._sink.positions(begins), health=self._health, beat=_BEAT),
                transient=transient, health=self._health, check="postgres", stop=self._stop, beat=_BEAT,
            )  # fmt: skip
            for number, position in positions.items():
                if position > ends[number]:
                    raise FatalError(
                        f"{self._topic.name}[{number}] ends at {ends[number]}, but {position} is stored as its next "
                        "offset: the topic was recreated or cut short. Going on would skip records: mend it."
                    )
        if self._assignment is not assignment or self._owned is not owned:
            return self._assignment  # the group moved on meanwhile; the loop comes here again
        for number, position in positions.items():
            consumer.seek(TopicPartition(self._topic.name, number), position)
        assignment.read.update(positions)
        assignment.stored.update(positions)
        self._owned = None
        consumer.resume(*partitions)
        self._health.ready("postgres", True)
        _log.info("assigned", topic=self._topic.name, positions=positions)
        return assignment

    async def _bounds(
        self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[int, int], dict[int, int]]:
        async def ask() -> tuple[dict[int, int], dict[int, int]]:
            try:
                begins = await consumer.beginning_offsets(partitions)
                ends = await consumer.end_offsets(partitions)
            except KafkaError as error:
                raise mapped(error) from error
            return ({tp.partition: at for tp, at in begins.items()}, {tp.partition: at for tp, at in ends.items()})

        return await retry_in_place(ask, health=self._health, check="kafka", stop=self._stop, beat=_BEAT)

    async def _poll(self, consumer: AIOKafkaConsumer, room: int) -> list[Record]:
        try:
            with self._reading.on("empty"):
                polled = await consumer.getmany(timeout_ms=round(self._wait_s * 1000), max_records=max(1, room))
        except KafkaError as error:
            known = mapped(error)
            self._failing_since = self._failing_since or time.monotonic()
            if not isinstance(known, TransientError) or time.monotonic() - self._failing_since > _FETCH_FAILS_S:
                raise FatalError(f"{self._topic.name} cannot be fetched: {known}") from error
            self._health.ready("kafka", False, str(known))
            _log.warning("fetch failed", topic=self._topic.name, error=str(known))
            await asyncio.sleep(self._wait_s)
            return []
        self._failing_since = None
        return [to_record(message) for messages in polled.values() for message in messages]

    async def _decode(self, source: _Assignment, records: Sequence[Record]) -> list[Item[Value]]:
        """Decode what we own and have not read yet: a fetch from before a seek may still bring something else."""
        items: list[Item[Value]] = []
        for count, record in enumerate(records, 1):
            position = source.read.get(record.partition)
            if position is None or record.offset < position:
                continue
            source.read[record.partition] = record.offset + 1
            try:
                items.append(Item(record, self._sink.decode(record)))
            except PoisonError as error:
                items.append(Item(record, poison=error.bare()))
            if count % _DECODE_CHUNK == 0:
                await asyncio.sleep(0)
        return items

    async def _store(self, source: _Assignment, items: Sequence[Item[Value]]) -> None:
        try:
            await self._writer.store(items, source.stored, self._stop, lambda: self._assignment is source)
        except Revoked:
            _log.info("revoked while paused: what was in hand is another's", topic=self._topic.name)
        except Fenced:
            source.fenced = True
            metrics.FENCED.labels(self._topic.name).inc()
            _log.warning("fenced: another process went on from our offsets", topic=self._topic.name)
