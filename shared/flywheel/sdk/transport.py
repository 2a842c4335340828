"""The port through which events leave the process, and its Kafka implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flywheel.sdk.buffer import Item
from flywheel.stream.cluster import Cluster
from flywheel.stream.producer import Producer

#: Told once per item what became of it: None is the broker's acknowledgement. PoisonError: it never will be taken.
Settled = Callable[[BaseException | None], None]


class Transport(Protocol):
    """One connection to a broker. The delivery makes a new one after each failure."""

    async def start(self) -> None:
        """Connect. Raises while it cannot."""
        ...

    async def send(self, item: Item, settled: Settled) -> None:
        """Hand the item over, waiting for room where there is none; ``settled`` is called later, in the same event
        loop.

        Raises PoisonError when this item can never be sent; any other exception means that the connection is broken and
        ``settled`` will not be called.
        """
        ...

    async def stop(self) -> None:
        """Settle what is under way, disconnect. May take as long as the broker is away."""
        ...

    async def abort(self) -> None:
        """Disconnect at once, after a ``stop`` that took too long or instead of one."""
        ...


class KafkaTransport:
    """Sends to Kafka with acks from all in-sync replicas, idempotently."""

    def __init__(self, kafka: Cluster | str, client_id: str) -> None:
        self._producer = Producer(kafka, client_id=client_id)

    async def start(self) -> None:
        """Connect. Raises TransientError while no broker answers, FatalError when it refuses us."""
        await self._producer.start()

    async def send(self, item: Item, settled: Settled) -> None:
        """Queue the item with the producer."""
        future = await self._producer.send(item.topic, item.key, item.value, item.headers)
        future.add_done_callback(lambda done: settled(Producer.outcome(done)))

    async def stop(self) -> None:
        """Flush and disconnect."""
        await self._producer.stop()

    async def abort(self) -> None:
        """Disconnect without waiting for the broker."""
        await self._producer.abort()
