"""The one table of topics. Creation, documentation, Kubernetes resources and tests derive from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DAY_MS = 24 * 60 * 60 * 1000

#: Largest event we process, in bytes. The SDK refuses a larger one at the source; one that arrives all the same goes to
#: the dead letters, whole, with the reason ``too_large``.
MAX_EVENT_BYTES = 4 * 1024 * 1024

#: Largest outcome, in bytes; the same holds for one that is larger.
MAX_OUTCOME_BYTES = 256 * 1024

#: Largest message the broker accepts. Well above MAX_EVENT_BYTES, so that an oversized event can be kept as a dead
#: letter (with its headers) instead of being bounced to a producer that may not look.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic: what its key is, how it is partitioned, how long it keeps what."""

    name: str
    key: str
    holds: str
    partitions: int
    cleanup: Literal["delete", "compact"] = "delete"
    retention_days: int | None = None

    @property
    def dead(self) -> str:
        """Name of the topic that takes what could not be processed from this one."""
        return f"{self.name}.dead"

    def config(self) -> dict[str, str]:
        """Return the topic's broker configuration."""
        out = {
            "cleanup.policy": self.cleanup,
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
            # The broker's clock, not the producer's: an agent whose clock is wrong must neither be refused by the
            # broker nor have its events expire before they are read.
            "message.timestamp.type": "LogAppendTime",
        }
        if self.retention_days is not None:
            out["retention.ms"] = str(self.retention_days * DAY_MS)
        return out


EVENTS = Topic("flywheel.events", "trajectory_id", "an agent's event", 12, retention_days=7)
OUTCOMES = Topic(
    "flywheel.outcomes",
    "scenario or window",
    "what the world turned out to be: later rewards",
    6,
    retention_days=30,
)
TRAJECTORIES = Topic("flywheel.trajectories", "trajectory_id", "a trajectory closed, or revised", 6, retention_days=7)
BATCHES = Topic(
    "flywheel.batches", "batch_id", "a training batch is ready: manifest, digest, the rule that fired", 1,
    retention_days=30,
)  # fmt: skip
MODELS = Topic(
    "flywheel.models",
    "model_id",
    "a model was trained: artifact, digest, lineage, evaluation",
    1,
    retention_days=30,
)
MODEL_UPDATES = Topic(
    "flywheel.model-updates",
    "channel",
    "which version a channel's agents shall run: artifact, rollout share",
    1,
    cleanup="compact",
)
ACKS = Topic("flywheel.acks", "agent_id", "an agent loaded, or failed to load, a version", 3, retention_days=7)
COMMANDS = Topic(
    "flywheel.commands",
    "target",
    "train now, cancel, deploy, pin, roll back, erase (declared; nothing reads it yet)",
    1,
    retention_days=30,
)

#: Beside the dead letters, not among them: what is counted there is dead letters. Kept longer than these.
REPLAYS = Topic(
    "flywheel.replays", "the dead letter", "which dead letters were put back, and where they are now", 1,
    retention_days=60,
)  # fmt: skip

SOURCES: tuple[Topic, ...] = (
    EVENTS, OUTCOMES, TRAJECTORIES, BATCHES, MODELS, MODEL_UPDATES, ACKS, COMMANDS,
)  # fmt: skip


def _dead(source: Topic) -> Topic:
    return Topic(
        source.dead, "as the source", f"what could not be processed from {source.name}, with why in headers", 1,
        retention_days=30,
    )  # fmt: skip


ALL_TOPICS: tuple[Topic, ...] = (*SOURCES, *(_dead(t) for t in SOURCES), REPLAYS)
BY_NAME: dict[str, Topic] = {t.name: t for t in ALL_TOPICS}
