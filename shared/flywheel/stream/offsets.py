"""How far topics reach and consumer groups got: what lag and dead letters are counted from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import reaching

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Offsets:
    """One look at the broker. Topics that do not exist are absent."""

    first: dict[Partition, int] = field(default_factory=dict)
    end: dict[Partition, int] = field(default_factory=dict)
    #: The next offset that each group would read; what a group never committed is absent.
    groups: dict[str, dict[Partition, int]] = field(default_factory=dict)

    def kept(self, topic: str) -> int | None:
        """Return how many records the topic holds at most (compaction leaves holes), None where it does not exist."""
        partitions = [partition for partition in self.end if partition[0] == topic]
        return sum(self.end[p] - self.first.get(p, 0) for p in partitions) if partitions else None

    def behind(self, reached: dict[Partition, int]) -> dict[str, int]:
        """Return by topic how many records lie behind the offsets ``reached``."""
        lag: dict[str, int] = defaultdict(int)
        for partition, offset in reached.items():
            if partition in self.end:
                lag[partition[0]] += max(0, self.end[partition] - max(offset, self.first.get(partition, 0)))
        return dict(lag)


async def read_offsets(kafka: Cluster | str, topics: Iterable[str], *, client_id: str = "flywheel-offsets") -> Offsets:
    """Ask the broker for the bounds of these topics and for the offsets of every consumer group.

    Raises TransientError while no broker answers, FatalError when it refuses.
    """
    kafka = Cluster.of(kafka)
    async with reaching(kafka):
        arguments = {"bootstrap_servers": kafka.servers, "client_id": client_id, **kafka.arguments()}
        consumer, admin = AIOKafkaConsumer(group_id=None, **arguments), AIOKafkaAdminClient(**arguments)
        try:
            await consumer.start()
            await admin.start()
            cluster = await consumer._client.fetch_all_metadata()  # the public face only knows subscribed topics
            wanted = [
                TopicPartition(name, number)
                for name in topics
                for number in sorted(cluster.partitions_for_topic(name) or ())
            ]
            first, end = await consumer.beginning_offsets(wanted), await consumer.end_offsets(wanted)
            groups = {name: await _group(admin, name) for name, *_ in await admin.list_consumer_groups()}
        finally:
            await consumer.stop()
            await admin.close()
    return Offsets(_plain(first), _plain(end), {name: offsets for name, offsets in groups.items() if offsets})


async def _group(admin: AIOKafkaAdminClient, name: str) -> dict[Partition, int]:
    committed = await admin.list_consumer_group_offsets(name)
    return {(p.topic, p.partition): known.offset for p, known in committed.items() if known.offset >= 0}


def _plain(offsets: dict[Any, int]) -> dict[Partition, int]:
    return {(partition.topic, partition.partition): offset for partition, offset in offsets.items()}
