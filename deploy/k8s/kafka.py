"""Kafka's custom resources: a KafkaTopic for every topic, a KafkaUser for everybody who may use some. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flywheel.topics import (
    ACKS,
    ALL_TOPICS,
    BATCHES,
    EVENTS,
    MODEL_UPDATES,
    MODELS,
    OUTCOMES,
    REPLAYS,
    SOURCES,
    TRAJECTORIES,
    Topic,
)

API = "kafka.strimzi.io/v1"
CLUSTER = "flywheel"
REPLICAS = 3
IN_STEP = 2

#: Every name of ours on the broker begins so.
_PREFIX = "flywheel."


@dataclass(frozen=True, slots=True)
class User:
    """Somebody on the broker: what it reads, in which groups, and what it writes.

    Who gives up on records of ``reads`` may write its dead letters too.
    """

    name: str
    why: str
    reads: tuple[Topic, ...] = ()
    writes: tuple[Topic, ...] = ()
    groups: tuple[str, ...] = ()
    sees_all: bool = False

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of the dead-letter topics that it writes: those of what it reads in groups."""
        return tuple(topic.dead for topic in self.reads) if self.groups else ()


#: The services that use topics, by their names. A test holds this against their code.
SERVICES: tuple[User, ...] = (
    User(
        "recorder",
        "events and outcomes to rows",
        (EVENTS, OUTCOMES),
        (TRAJECTORIES,),
        ("flywheel-recorder", "flywheel-recorder-outcomes"),
        sees_all=True,
    ),
    User("archiver", "trajectories to batches", (TRAJECTORIES,), (BATCHES,), ("flywheel-archiver",), sees_all=True),
    User("trainer", "batches to models", (BATCHES,), (MODELS,), ("flywheel-trainer",), sees_all=True),
    # Whoever writes model updates decides what agents run: the deployer alone.
    User("deployer", "models to agents", (MODELS, ACKS), (MODEL_UPDATES,), ("flywheel-deployer",), sees_all=True),
    User("gateway", "shows lag and counts dead letters", sees_all=True),
)

OTHERS: tuple[User, ...] = (
    User("agents", "record, follow their model, acknowledge it", (MODEL_UPDATES,), (EVENTS, ACKS, OUTCOMES)),
    User(
        "operator", "the command line: imports models, commands, puts dead letters back", ALL_TOPICS,
        (*(topic for topic in SOURCES if topic is not MODEL_UPDATES), REPLAYS), sees_all=True,
    ),
    User("keda", "reads the lag that the recorder and the archiver are scaled by", sees_all=True),
)  # fmt: skip

USERS = (*SERVICES, *OTHERS)


def topics() -> list[dict[str, Any]]:
    """Return a KafkaTopic for each of the code's topics."""
    return [
        {
            "apiVersion": API,
            "kind": "KafkaTopic",
            "metadata": {"name": topic.name, "labels": {"strimzi.io/cluster": CLUSTER}},
            "spec": {
                "topicName": topic.name,
                "partitions": topic.partitions,
                "replicas": REPLICAS,
                "config": topic.config() | {"min.insync.replicas": str(IN_STEP)},
            },
        }
        for topic in ALL_TOPICS
    ]


def users() -> list[dict[str, Any]]:
    """Return a KafkaUser for each of :data:`USERS`, with what it may do and nothing else."""
    return [
        {
            "apiVersion": API,
            "kind": "KafkaUser",
            "metadata": {
                "name": f"flywheel-{user.name}",
                "labels": {"strimzi.io/cluster": CLUSTER},
                "annotations": {"flywheel.io/why": user.why},
            },
            "spec": {
                "authentication": {"type": "scram-sha-512"},
                "authorization": {"type": "simple", "acls": list(_rules(user))},
            },
        }
        for user in USERS
    ]


def _rules(user: User) -> Iterator[dict[str, Any]]:
    if user.sees_all:
        yield _rule("topic", _PREFIX, ["Describe", "DescribeConfigs"], prefix=True)
        yield _rule("group", "flywheel-", ["Describe"], prefix=True)
    for topic in user.reads:
        yield _rule("topic", topic.name, ["Read", "Describe"])
    for name in (*(topic.name for topic in user.writes), *user.dead):
        yield _rule("topic", name, ["Write", "Describe"])
    for group in user.groups:
        yield _rule("group", group, ["Read", "Describe"])


def _rule(kind: str, name: str, operations: list[str], *, prefix: bool = False) -> dict[str, Any]:
    pattern = "prefix" if prefix else "literal"
    return {"resource": {"type": kind, "name": name, "patternType": pattern}, "operations": operations}
