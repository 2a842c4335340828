"""Follow a topic without a consumer group: every reader sees every record. Light on purpose: the SDK uses it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from flywheel.errors import FatalError
from flywheel.stream._kafka import FETCH_BYTES, PARTITION_FETCH_BYTES, to_record
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import cause
from flywheel.stream.record import Record

_log = logging.getLogger(__name__)
_RECONNECT_S = 1.0


async def follow(
    kafka: Cluster | str, topic: str, *, from_beginning: bool, client_id: str = "flywheel"
) -> AsyncGenerator[Record, None]:
    """Yield every record of the topic's partitions, forever, from the beginning or from what is new once iteration
    began.

    Waits while there is no broker or no such topic, and reconnects by itself, going on where it was. Raises
    FatalError when the broker refuses us. Close the iterator (``contextlib.aclosing``) to disconnect.
    """
    kafka = Cluster.of(kafka)
    positions: dict[TopicPartition, int] = {}
    while True:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka.servers,
            **kafka.arguments(),
            client_id=client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        )
        try:
            await consumer.start()
            await _seek(consumer, positions, from_beginning)
            async for message in consumer:
                partition = TopicPartition(message.topic, message.partition)
                if message.offset >= positions.get(partition, 0):  # a grown topic is read from its start again
                    positions[partition] = message.offset + 1
                    yield to_record(message)
        except (KafkaError, OSError) as error:
            known = await cause(kafka, error)
            if isinstance(known, FatalError):
                raise known from error
            _log.warning("following %s: %s; again in %s s", topic, known, _RECONNECT_S)
        finally:
            await consumer.stop()
        await asyncio.sleep(_RECONNECT_S)


async def _seek(consumer: AIOKafkaConsumer, positions: dict[TopicPartition, int], from_beginning: bool) -> None:
    """Go to the positions reached so far; a partition without one gets its own now, so that a reconnect leaves no
    gap.
    """
    assigned = consumer.assignment()
    new = [partition for partition in assigned if partition not in positions]
    bounds = consumer.beginning_offsets if from_beginning else consumer.end_offsets
    positions.update(await bounds(new) if new else {})
    for partition in assigned:
        consumer.seek(partition, positions[partition])
