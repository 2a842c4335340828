"""The producer: acks=all, idempotent, compressed. What it acknowledged is in Kafka once, in the order it was sent.

Light on purpose (aiokafka alone): the SDK inside an agent uses it too.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from flywheel.errors import TransientError
from flywheel.stream._kafka import mapped
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import cause
from flywheel.stream.record import Headers
from flywheel.topics import MAX_MESSAGE_BYTES

_NO_HEADERS: Headers = MappingProxyType({})
_BATCH_BYTES = 256 * 1024


class Producer:
    """Sends to Kafka. The broker's own outages are waited out; order within a key is kept across them.

    ``linger_ms`` is the longest wait for company before a batch leaves. A message counts as sent only when its
    future resolved.
    """

    def __init__(self, kafka: Cluster | str, *, client_id: str = "flywheel", linger_ms: int = 5) -> None:
        self._kafka = Cluster.of(kafka)
        self._client_id = client_id
        self._linger_ms = linger_ms
        self._producer: AIOKafkaProducer | None = None
        self._stopping: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises TransientError while no broker answers, FatalError when it refuses; may be called again."""
        if self._producer is not None:
            return
        producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka.servers,
            **self._kafka.arguments(),
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            compression_type="zstd",
            max_request_size=MAX_MESSAGE_BYTES,
            max_batch_size=_BATCH_BYTES,
            linger_ms=self._linger_ms,
        )
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            await producer.stop()
            raise await cause(self._kafka, error) from error
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer

    async def stop(self) -> None:
        """Send what waits, then disconnect. Waits as long as the broker is away; :meth:`close` does not."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._stopping = producer
            await producer.stop()
            self._stopping = None

    async def close(self, within_s: float = 10.0) -> None:
        """Send what waits, for ``within_s`` seconds at most, and disconnect either way.

        For those who can send again what was not acknowledged: a service's exit must not hang on an absent broker.
        """
        try:
            await asyncio.wait_for(self.stop(), within_s)
        except TimeoutError:
            await self.abort()

    async def abort(self) -> None:
        """Disconnect without waiting for the broker, instead of :meth:`stop` or after one that was cancelled.

        What was not acknowledged may have arrived or not.
        """
        producer, self._producer = self._producer or self._stopping, None
        self._stopping = None
        if producer is not None:
            # aiokafka has no public way out: its stop() flushes for as long as the broker is away.
            await producer._sender.close()
            await producer.client.close()
            producer._closed = True

    async def flush(self) -> None:
        """Wait until the broker has acknowledged, or refused, everything sent so far."""
        await self._running().flush()

    async def send(
        self, topic: str, key: str | bytes | None, value: bytes | None, headers: Headers = _NO_HEADERS
    ) -> asyncio.Future[Any]:
        """Queue a message; the returned future resolves when the broker has it, or fails with aiokafka's KafkaError.

        Waits for room while too much is queued. Raises TransientError when there is none for 40 s or the topic is
        unknown, PoisonError (``too_large``) for more than MAX_MESSAGE_BYTES.
        """
        packed = [(name, _bytes(said)) for name, said in headers.items()]
        try:
            return await self._running().send(topic, value, key=_bytes(key), headers=packed)
        except KafkaError as error:
            raise mapped(error) from error

    async def send_and_wait(
        self, topic: str, key: str | bytes | None, value: bytes | None, headers: Headers = _NO_HEADERS
    ) -> None:
        """Send a message and wait for the broker's acknowledgement. Raises as :meth:`send` does."""
        future = await self.send(topic, key, value, headers)
        try:
            await future
        except KafkaError as error:
            raise mapped(error) from error

    @staticmethod
    def outcome(future: asyncio.Future[Any]) -> BaseException | None:
        """Return how a resolved future of :meth:`send` ended: None when the broker has it, else the error.

        PoisonError (``too_large``): the broker will never take it. FatalError: it refuses us. Any other: send again.
        """
        if future.cancelled():
            return TransientError("the producer was stopped")
        error = future.exception()
        return mapped(error) if isinstance(error, KafkaError) else error

    def _running(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise TransientError("the producer is not started")
        return self._producer


def _bytes(said: str | bytes | None) -> bytes | None:
    return said.encode() if isinstance(said, str) else said
