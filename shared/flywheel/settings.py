"""Every setting, in one place: name, type, default, meaning. ``docs/settings.md`` is generated from this module.

Values come from the environment (``FLYWHEEL_…``), then from the file that the local stack writes
(``var/local/flywheel.env``; ``FLYWHEEL_ENV_FILE`` names another), then from the defaults below.
Only ``__main__`` modules, the command line and the agents' own code load settings; everything else is handed them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from flywheel.connection_settings import KafkaConnection, S3Connection
from flywheel.learning_settings import LearningSettings
from flywheel.messages import DEFAULT_CHANNEL
from flywheel.topics import EVENTS, MAX_EVENT_BYTES

#: A hundred years are as good as for ever, and every clock and database can still reckon with them.
Seconds = Annotated[float, Field(gt=0, le=100 * 365 * 86_400, allow_inf_nan=False)]


def _outlives_topic(days: int) -> int:
    """Refuse to drop what a replay of the topic would bring back."""
    kept = EVENTS.retention_days or 0
    if days <= kept:
        raise ValueError(f"must be more than {kept} days: {EVENTS.name} is kept for so long, and may be replayed")
    return days


def env_file() -> Path:
    """Return the path of the file with the local stack's addresses (it need not exist)."""
    if named := os.environ.get("FLYWHEEL_ENV_FILE"):
        return Path(named)
    return Path(os.environ.get("FLYWHEEL_VAR", "var")) / "local" / "flywheel.env"


class Section(BaseSettings):
    """A group of settings with one prefix."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    @classmethod
    def load(cls) -> Self:
        """Read environment and env file. Raises pydantic.ValidationError naming the variable that does not fit."""
        return cls(_env_file=env_file())  # pyright: ignore[reportCallIssue] - pydantic-settings takes it


class Connections(S3Connection, KafkaConnection, Section):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Where Kafka, Postgres and the object store are. The same names point any part at an existing server."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_", hide_input_in_errors=True)

    postgres: str = Field(
        default="postgresql://postgres@127.0.0.1:5432/flywheel",
        description="connection URL; `?sslmode=verify-full&sslrootcert=FILE` asks for TLS",
    )


class ServiceSettings(Section):
    """What every service has."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_")

    log_level: str = Field(default="info", description="debug, info, warning or error")
    metrics_host: str = Field(default="127.0.0.1", description="address that health and metrics listen on")
    var: Path = Field(default=Path("var"), description="folder for local state: logs, caches, checkpoints")
    stop_grace_s: Seconds = Field(default=20.0, description="longest drain after SIGTERM before the process ends")
    topic_replication: int = Field(
        default=1, ge=1, description="copies of each topic that we create; 3 where there are three brokers or more"
    )
    otel: bool = Field(
        default=False, description="send OpenTelemetry traces (tracing.md); agents with our SDK read it too"
    )
    otel_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of new traces that is sampled: of trajectories in an agent, of batches in a service. What "
        "goes on in a trace, or links to a sampled one, is sampled as that is",
    )


class RecorderSettings(Section):
    """The recorder: events to rows."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_RECORDER_")

    metrics_port: int = Field(default=9101, description="port of /metrics, /healthz, /readyz")
    batch_events: int = Field(default=3000, ge=1, description="most events in one transaction")
    batch_wait_ms: int = Field(default=50, ge=1, description="longest wait for a batch to fill")
    idle_close_s: Seconds = Field(
        default=900.0, description="an open trajectory without events for this long is closed as incomplete"
    )
    idle_close_by_scenario: dict[str, Seconds] = Field(
        default_factory=dict,
        description='the same for some scenarios, as JSON: {"market-*": 30}; * and ? stand for any text and any'
        " character, and of several that fit the one with the most other characters holds",
    )
    days_ahead: int = Field(
        default=3, ge=1, le=30, description="how many days ahead the partitions of the table events are made"
    )
    dead_share_limit: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of dead letters in the last dead_window events above which the recorder pauses until it is "
        "released; 1: never",
    )
    dead_window: int = Field(default=10_000, ge=1, description="events over which dead_share_limit is judged")


class ArchiverSettings(Section):
    """The archiver: closed trajectories to immutable training batches, by readiness rules."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_ARCHIVER_")

    metrics_port: int = Field(default=9102, description="port of /metrics, /healthz, /readyz")
    min_trajectories: int = Field(default=64, ge=1, description="volume: a batch has at least this many trajectories")
    min_groups: int = Field(default=4, ge=1, description="a batch has at least this many groups")
    min_group_size: int = Field(default=2, ge=1, description="a group below this size is not compared, so it waits")
    group_settle_s: Seconds = Field(
        default=30.0, description="a group of unknown or unreached size counts as whole after this long without news"
    )
    outcome_wait_s: float = Field(
        default=0.0,
        ge=0,
        description="a group with a trajectory that has no reward waits for this long after that closed, in seconds,"
        " for the outcome that judges it; 0: not at all",
    )
    max_trajectories: int = Field(
        default=4096, ge=1, description="a batch has at most this many trajectories, whole groups only"
    )
    check_interval_s: Seconds = Field(default=1.0, description="how often readiness is judged without news")
    part_trajectories: int = Field(default=1000, ge=1, description="trajectories in one data file")
    retention_days: Annotated[int, AfterValidator(_outlives_topic)] | None = Field(
        default=None,
        description="days older than this are archived in the object store and dropped from the database;"
        " none: events stay for ever",
    )
    retention_check_s: Seconds = Field(default=600.0, description="how often days past their time are looked for")


class TrainerSettings(LearningSettings, Section):
    """The trainer: a batch and the current model to the next model."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_TRAINER_")

    metrics_port: int = Field(default=9103, description="port of /metrics, /healthz, /readyz")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto, cpu or cuda")
    learning_rate: float = Field(
        default=1e-5, gt=0, description="highest learning rate; it falls linearly to 0 within a job"
    )
    warmup_share: float = Field(
        default=0.25, ge=0, lt=1, description="share of a job's steps over which the learning rate rises from 0"
    )
    micro_batch: int = Field(default=8, ge=1, description="most rows in one forward pass of one process")
    accumulation: int = Field(
        default=1, ge=1, description="an optimizer step takes micro_batch x accumulation rows, whoever computes them"
    )
    iterations: int = Field(default=1, ge=1, description="passes over a batch")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of every run: same batch, parent, settings and seed, same weights"
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping")
    beta: float = Field(
        default=0.0, ge=0, description="weight of the KL to the model that the batch's training started from"
    )
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature of the recorded log-probabilities")
    max_staleness: int = Field(
        default=4, ge=0, description="rows sampled more than this many versions ago are dropped and counted"
    )
    max_age_s: Seconds | None = Field(
        default=None,
        description="rows sampled longer than this before the job began are dropped and counted; none: no such bound",
    )
    text_only: Literal["quarantine", "recompute", "supervised"] = Field(
        default="quarantine",
        description="calls without token ids or log-probabilities; quarantine: dropped and counted; recompute: ids by "
        "the model's chat template, log-probabilities where the model that sampled is the one training starts from; "
        "supervised: the same, and where these cannot be had, imitated if rewarded, without a ratio",
    )
    attempts: int = Field(default=3, ge=1, description="tries before a job is failed")
    lease_s: Seconds = Field(
        default=10.0, description="a job whose trainer has been silent for this long is taken up again"
    )
    poll_s: Seconds = Field(default=0.5, description="how often pending jobs are looked for without news")
    registration_wait_s: Seconds = Field(
        default=60.0, description="longest wait for the last model's registration before the next job starts without it"
    )
    threads: int = Field(default=0, ge=0, description="torch threads; 0: torch decides")


class DeployerSettings(Section):
    """The deployer: trained models to versions, versions to agents."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_DEPLOYER_")

    metrics_port: int = Field(default=9104, description="port of /metrics, /healthz, /readyz")


class GatewaySettings(Section):
    """The gateway: REST over everything recorded."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_GATEWAY_")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, description="port of the API, /metrics, /healthz, /readyz")
    token: SecretStr | None = Field(
        default=None, description="bearer token that readers must show; none: reading is open"
    )


class AgentSettings(Section):
    """What an agent's SDK reads when it is not told in code."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_AGENT_")

    channel: str = Field(default=DEFAULT_CHANNEL, description="model channel to follow")
    enabled: bool = Field(default=True, description="off: the recorder records nothing and costs nothing")
    sampling_rate: float = Field(default=1.0, ge=0, le=1, description="share of trajectories that is recorded")
    buffer_events: int = Field(default=10_000, ge=1, description="most events waiting in memory")
    buffer_bytes: int = Field(
        default=64 * 1024 * 1024, ge=MAX_EVENT_BYTES, description="most bytes of events waiting in memory"
    )
    when_full: Literal["drop_newest", "drop_trajectory", "block"] = Field(
        default="drop_newest", description="what happens to an event when the buffer is full"
    )
    block_timeout_s: Seconds = Field(default=5.0, description="block: longest wait of the agent for room in the buffer")
    flush_timeout_s: Seconds = Field(default=10.0, description="longest wait for the broker when the agent exits")


class LocalSettings(Section):
    """The stack on one machine (``flywheel up``): what it starts where nothing else is pointed to."""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_LOCAL_")

    kafka_port: int | None = Field(default=None, ge=1, le=65535, description="Kafka's port; none: a free one")
    postgres_port: int | None = Field(default=None, ge=1, le=65535, description="Postgres's port; none: a free one")
    s3_port: int | None = Field(default=None, ge=1, le=65535, description="the S3 server's port; none: a free one")
    s3: Literal["seaweedfs", "minio"] = Field(default="seaweedfs", description="which S3 server: seaweedfs or minio")
    kafka_heap: str = Field(default="512m", pattern=r"^[0-9]+[kmg]$", description="the broker's Java heap")
    cache: Path | None = Field(
        default=None, description="folder for what is fetched or built once; none: flywheel in the user's cache folder"
    )


SECTIONS: tuple[type[Section], ...] = (
    Connections, ServiceSettings, RecorderSettings, ArchiverSettings, TrainerSettings, DeployerSettings,
    GatewaySettings, AgentSettings, LocalSettings,
)  # fmt: skip
