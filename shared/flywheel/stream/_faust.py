"""What Faust says in its own words: how it gets in, and what a record is."""

from __future__ import annotations

from typing import Any

import faust

from flywheel.stream.cluster import Cluster
from flywheel.stream.record import Record


def credentials(kafka: Cluster) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return how a Faust app gets into the cluster; None where anybody may come in."""
    settings = kafka.settings
    if settings.logs_in:
        return faust.SASLCredentials(
            username=settings.kafka_user, password=kafka.password, mechanism=settings.kafka_sasl_mechanism,
            ssl_context=kafka.tls,
        )  # fmt: skip
    return faust.SSLCredentials(kafka.tls) if kafka.tls is not None else None


def to_record(message: Any) -> Record:
    """Return Faust's message as a record of ours."""
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return Record(
        message.topic, message.partition, message.offset, message.key, message.value,
        tuple(pairs), round(message.timestamp * 1000),
    )  # fmt: skip
