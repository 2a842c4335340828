"""Watches one consumer of the broker: how far behind it is, whether the broker answers, whether anything moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from flywheel import metrics
from flywheel.errors import FatalError
from flywheel.health import Health, stalled
from flywheel.log import get_logger
from flywheel.stream.age import Ages
from flywheel.stream.blocked import Stopwatch
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import why_silent
from flywheel.topics import Topic

_log = get_logger(__name__)

_EVERY_S = 1.0
_TIMEOUT_S = 5.0


class Probe:
    """Keeps lag, readiness and Kafka's own offsets current for the partitions whose stored offsets ``stored`` returns.

    Kafka's offsets are for those who watch the lag there; nothing depends on them.
    """

    def __init__(
        self, kafka: Cluster, topic: Topic, health: Health, stored: Callable[[], Mapping[int, int]], ages: Ages[int],
        watches: Sequence[Stopwatch] = (),
    ) -> None:  # fmt: skip
        self._kafka = kafka
        self._topic = topic
        self._health = health
        self._stored = stored
        self._ages = ages
        self._watches = watches
        self._measured: set[int] = set()
        self._moved = time.monotonic()
        self.lag: int | None = None
        """Records in our partitions that are not stored yet; None while unknown."""

    def moved(self) -> None:
        """Say that records came, or that some are in hand: what is behind is not stuck."""
        self._moved = time.monotonic()

    async def run(self, consumer: AIOKafkaConsumer, settled: Callable[[], bool]) -> None:
        """Watch until cancelled; ``settled`` says whether what the group assigned has been taken over.

        Raises FatalError when the broker refuses us by now, and when records wait and none comes: aiokafka's fetching
        can die without a word.
        """
        while True:
            await asyncio.sleep(_EVERY_S)
            for watch in self._watches:
                watch.flush()
            stored = dict(self._stored())
            try:
                behind = await self._behind(consumer, stored)
            except (KafkaError, TimeoutError) as error:
                self.lag = None
                self.moved()  # it cannot, while the broker is away
                why = f"no answer within {_TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else repr(error)
                self._health.ready("kafka", False, why)
                self._publish_ages()
                if known := await why_silent(self._kafka):
                    self._health.ready("kafka", False, known)
                continue
            self._publish(behind)
            if not self.lag or not settled():
                self.moved()
            elif stalled(time.monotonic(), self._moved):
                raise FatalError(f"{self._topic.name}: {self.lag} records wait and none has come for a while")
            ready = settled() and (bool(stored) or not consumer.assignment())
            self._health.ready("kafka", ready, "" if ready else "taking over partitions")
            if ready:
                self._health.started()
            await self.commit(consumer)

    async def commit(self, consumer: AIOKafkaConsumer) -> None:
        """Tell Kafka what is stored."""
        ours = consumer.assignment()
        stored = {TopicPartition(self._topic.name, number): at for number, at in self._stored().items()}
        try:
            if known := {partition: at for partition, at in stored.items() if partition in ours}:
                await asyncio.wait_for(consumer.commit(known), _TIMEOUT_S)
        except (KafkaError, TimeoutError) as error:
            _log.debug("offsets not committed to Kafka", error=repr(error))

    async def _behind(self, consumer: AIOKafkaConsumer, stored: Mapping[int, int]) -> dict[int, int]:
        partitions = [TopicPartition(self._topic.name, number) for number in stored]
        ends = await asyncio.wait_for(consumer.end_offsets(partitions), _TIMEOUT_S) if partitions else {}
        return {partition.partition: max(0, end - stored[partition.partition]) for partition, end in ends.items()}

    def _publish(self, behind: Mapping[int, int]) -> None:
        for number, records in behind.items():
            metrics.LAG_RECORDS.labels(self._topic.name, number).set(records)
        for number in self._measured - behind.keys():  # it is another process's to tell
            metrics.LAG_RECORDS.remove(self._topic.name, number)
            metrics.LAG_SECONDS.remove(self._topic.name, number)
        self._measured = set(behind)
        self.lag = sum(behind.values())
        self._ages.look(_now_ms(), behind)
        self._publish_ages()

    def _publish_ages(self) -> None:
        for number, seconds in self._ages.seconds(_now_ms()).items():
            metrics.LAG_SECONDS.labels(self._topic.name, number).set(seconds)


def _now_ms() -> int:
    return round(time.time() * 1000)
