"""Dead letters: what cannot be processed is kept whole, with why in its headers, where a replay can find it."""

from __future__ import annotations

from flywheel import metrics, tracing
from flywheel.errors import PoisonError
from flywheel.log import get_logger
from flywheel.stream.letter import CUT_FROM, PREFIX, SUFFIX, Place, dead_headers
from flywheel.stream.producer import Producer
from flywheel.stream.record import Record

__all__ = ["PREFIX", "DeadLetters", "dead_headers"]

_log = get_logger(__name__)

_MESSAGE_CHARS = 2000
#: A record that does not fit the broker with our headers (it nearly filled a message, or fitted only compressed) is
#: kept without its own headers, its value and key cut to these.
_CUT_BYTES = 1024 * 1024
_CUT_KEY_BYTES = 1000


class DeadLetters:
    """Sends records that can never be processed to ``<topic>.dead``, with the key, value and headers they came with."""

    def __init__(self, producer: Producer, service_name: str) -> None:
        self._producer = producer
        self._service = service_name

    async def put(self, record: Record, error: PoisonError, attempts: int = 1) -> None:
        """Return when the broker has the dead letter; only then may the record's offset move. Raises TransientError."""
        headers = dead_headers(record, error, attempts, self._service)
        key = record.key if record.key is not None or record.value is not None else b""  # the client wants one of them
        topic = record.topic + SUFFIX
        try:
            await self._producer.send_and_wait(topic, key, record.value, headers)
        except PoisonError:
            value = record.value or b""
            headers = dead_headers(record._replace(headers=()), error, attempts, self._service)
            headers[CUT_FROM] = str(len(value))
            await self._producer.send_and_wait(topic, (key or b"")[:_CUT_KEY_BYTES], value[:_CUT_BYTES], headers)
        metrics.DEAD.labels(record.topic, error.reason).inc()
        tracing.event(
            "dead letter", {"flywheel.dead.record": str(Place(record.topic, record.partition, record.offset)),
                            "flywheel.dead.reason": error.reason},
        )  # fmt: skip
        _log.warning(
            "dead letter", topic=record.topic, partition=record.partition, offset=record.offset,
            reason=error.reason, error=str(error)[:_MESSAGE_CHARS],
        )  # fmt: skip
