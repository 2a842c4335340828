"""What every aiokafka client of ours shares: limits, and how Kafka's errors map onto ours."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from flywheel.errors import FatalError, FlywheelError, PoisonError, TransientError
from flywheel.stream import _headers, _noise
from flywheel.stream.cluster import Cluster
from flywheel.stream.record import Record

#: A fetch returns at most this much per partition, and per broker, except that one record larger than it comes
#: through whole. It bounds the memory of a consumer, whatever the lag: some copies of it are alive at a time, unpacked.
PARTITION_FETCH_BYTES = 1024 * 1024
FETCH_BYTES = 8 * 1024 * 1024

_headers.install()
_noise.install()

_REFUSED = (
    AuthenticationFailedError, AuthenticationMethodNotSupported, SaslAuthenticationFailed, IllegalSaslStateError,
    UnsupportedSaslMechanismError,
)  # fmt: skip
_NO_RIGHT = (ClusterAuthorizationFailedError, GroupAuthorizationFailedError, TopicAuthorizationFailedError)


#: A killed process's partitions are free after this long.
SESSION_MS = 6_000
HEARTBEAT_MS = 1_500
#: A batch may take this long without the group thinking that its reader is gone: training takes hours, and a
#: database that is down for days must not cost the partitions.
LONGEST_BATCH_MS = 7 * 24 * 3600 * 1000
_REBALANCE_MS = 30_000


def grouped_consumer(kafka: Cluster, group: str) -> AIOKafkaConsumer:
    """Return a consumer, not started, that shares partitions within ``group`` and commits nothing by itself."""
    return AIOKafkaConsumer(
        bootstrap_servers=kafka.servers,
        **kafka.arguments(),
        client_id=group,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        rebalance_timeout_ms=_REBALANCE_MS,
        max_poll_interval_ms=LONGEST_BATCH_MS,
    )


def mapped(error: KafkaError | OSError) -> FlywheelError:
    """Return the error of :mod:`flywheel.errors` that an error of a Kafka client means."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MessageSizeTooLargeError | RecordTooLargeError):
        return PoisonError("too_large", text)
    if isinstance(error, _NO_RIGHT):
        return FatalError(f"{error}: our Kafka user has no right to that (who needs which: docs/operating.md)")
    if isinstance(error, _REFUSED):
        return FatalError(text)
    return TransientError(text)


def to_record(message: Any) -> Record:
    """Return aiokafka's ConsumerRecord as ours."""
    return Record(
        message.topic, message.partition, message.offset, message.key, message.value,
        tuple(message.headers), message.timestamp,
    )  # fmt: skip
