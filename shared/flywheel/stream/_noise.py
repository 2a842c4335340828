"""Keeps aiokafka from repeating itself: while a broker is away it says the same several times a second, in every agent.

Each of its messages still comes at once; the same one again only after a while, with how often it was kept back.
"""

from __future__ import annotations

from flywheel.sparing import spare

_LOGGERS = (
    "aiokafka", "aiokafka.client", "aiokafka.cluster", "aiokafka.conn", "aiokafka.consumer.consumer",
    "aiokafka.consumer.fetcher", "aiokafka.consumer.group_coordinator", "aiokafka.producer.producer",
    "aiokafka.producer.sender", "aiokafka.admin.client", "aiokafka.helpers",
)  # fmt: skip


def install() -> None:
    """Have all of aiokafka's loggers in this process speak this way."""
    spare(_LOGGERS)
