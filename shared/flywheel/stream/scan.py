"""Read parts of topics once, from a start to an end: for tools, without a consumer group. Memory holds one fetch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from flywheel.errors import TransientError
from flywheel.stream._kafka import FETCH_BYTES, PARTITION_FETCH_BYTES, to_record
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import cause
from flywheel.stream.record import Record

_POLL_MS = 500
#: A broker that is away makes no fetch fail, it only brings nothing.
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of one partition, ``end`` not included. ``first`` is the oldest that the broker has."""

    topic: str
    partition: int
    first: int
    start: int
    end: int

    @property
    def whole(self) -> bool:
        """Whether everything that the broker has is in it."""
        return self.start <= self.first


async def spans(kafka: Cluster | str, *, named: Iterable[str] | None = None, suffix: str = "") -> list[Span]:
    """Return everything that the broker has now of the topics ``named``, or of all whose name ends with ``suffix``.

    Topics that do not exist are absent. Raises TransientError while no broker answers, FatalError when it refuses.
    """
    kafka = Cluster.of(kafka)
    consumer = _consumer(kafka)
    try:
        await consumer.start()
        cluster = await consumer._client.fetch_all_metadata()  # the public face only knows subscribed topics
        known = set(cluster.topics())
        wanted = known & set(named) if named is not None else {name for name in known if name.endswith(suffix)}
        partitions = [
            TopicPartition(name, number)
            for name in sorted(wanted)
            for number in sorted(cluster.partitions_for_topic(name) or ())
        ]
        first = await consumer.beginning_offsets(partitions) if partitions else {}
        end = await consumer.end_offsets(partitions) if partitions else {}
    except (KafkaError, OSError) as error:
        raise await cause(kafka, error) from error
    finally:
        await _stop(consumer)
    return [Span(tp.topic, tp.partition, first[tp], first[tp], end[tp]) for tp in partitions]


async def since(kafka: Cluster | str, whole: Sequence[Span], timestamp_ms: int) -> list[Span]:
    """Return the spans cut to what was written from then on. Raises as :func:`spans` does."""
    kafka = Cluster.of(kafka)
    consumer = _consumer(kafka)
    at = {TopicPartition(span.topic, span.partition): max(0, timestamp_ms) for span in whole}
    try:
        await consumer.start()
        found = await consumer.offsets_for_times(at) if at else {}
    except (KafkaError, OSError) as error:
        raise await cause(kafka, error) from error
    finally:
        await _stop(consumer)
    starts = {(tp.topic, tp.partition): known.offset for tp, known in found.items() if known is not None}
    return [
        Span(s.topic, s.partition, s.first, min(max(s.first, starts.get((s.topic, s.partition), s.end)), s.end), s.end)
        for s in whole
    ]


async def scan(kafka: Cluster | str, wanted: Iterable[Span]) -> AsyncGenerator[Record, None]:
    """Yield the records of the spans, one span after the other, in order. Close the iterator to disconnect.

    Raises TransientError when nothing comes for half a minute, FatalError when the broker refuses.
    """
    kafka = Cluster.of(kafka)
    consumer = _consumer(kafka)
    try:
        await consumer.start()
        for span in wanted:
            if span.start < span.end:
                async for record in _span(consumer, span):
                    yield record
    except (KafkaError, OSError) as error:
        raise await cause(kafka, error) from error
    finally:
        await _stop(consumer)


async def _span(consumer: AIOKafkaConsumer, span: Span) -> AsyncGenerator[Record, None]:
    partition = TopicPartition(span.topic, span.partition)
    consumer.assign([partition])
    consumer.seek(partition, span.start)
    moved, position = time.monotonic(), span.start
    while position < span.end:  # the position, not the last record: compaction and transactions leave holes
        polled = await consumer.getmany(partition, timeout_ms=_POLL_MS)
        for message in polled.get(partition, ()):
            if span.start <= message.offset < span.end:
                yield to_record(message)
        reached = await asyncio.wait_for(consumer.position(partition), _PATIENCE_S)
        if reached > position:
            moved, position = time.monotonic(), reached
        elif time.monotonic() - moved > _PATIENCE_S:
            raise TransientError(f"{span.topic}[{span.partition}] brings nothing at {position} of {span.end}")


def _consumer(kafka: Cluster) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=kafka.servers,
        **kafka.arguments(),
        client_id="flywheel-scan",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # what retention took meanwhile is skipped
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
    )


async def _stop(consumer: AIOKafkaConsumer) -> None:
    await asyncio.sleep(0)  # aiokafka's stop() fails on a task of its start() that has not begun yet
    await consumer.stop()
