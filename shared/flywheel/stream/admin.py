"""Creates the topics of :mod:`flywheel.topics` where they are missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from flywheel.errors import TransientError
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import reaching
from flywheel.topics import ALL_TOPICS, Topic


async def ensure_topics(kafka: Cluster | str, topics: Iterable[Topic] = ALL_TOPICS, replication: int = 1) -> None:
    """Create what is missing; existing topics are left as they are. Safe to call from several processes at once.

    Raises TransientError while no broker answers, or a topic is missing that our user may not create; FatalError when
    the broker refuses us.
    """
    kafka = Cluster.of(kafka)
    wanted = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=replication, topic_configs=t.config())
        for t in topics
    ]
    async with reaching(kafka):
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.servers, client_id="flywheel-admin", **kafka.arguments())
        try:
            await admin.start()
            present = set(await admin.list_topics())
            missing = [topic for topic in wanted if topic.name not in present]
            if missing:
                _check(await admin.create_topics(missing))
        finally:
            await admin.close()


def _check(response: Any) -> None:
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if issubclass(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
            raise TransientError(  # whoever may create it will: an operator of a cluster, a person
                f"no topic {name} to be seen, and our Kafka user may not create it: waiting for it (docs/topics.md)"
            )
        if code and not issubclass(error, TopicAlreadyExistsError):
            raise error(f"{name}: {' '.join(str(part) for part in message)}")
