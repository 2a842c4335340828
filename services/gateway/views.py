"""What the API answers: one model for each kind of thing. OpenAPI and the pages are made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """A row as readers see it; a number that JSON cannot say is null."""

    model_config = ConfigDict(ser_json_inf_nan="null", protected_namespaces=())


Row = TypeVar("Row", bound=View)


class Page(View, Generic[Row]):
    """Rows, and how to get the next ones."""

    items: list[Row]
    next: str | None = Field(default=None, description="cursor of the next page; null: this was the last")


class TrajectoryRow(View):
    """One trajectory in short."""

    trajectory_id: str
    agent_id: str
    scenario_id: str | None
    group_id: str | None
    group_size: int | None
    episode_id: str | None
    split: str
    channel: str | None
    model_version: str | None
    window_id: str
    status: str
    failure: str | None
    error: str | None
    revision: int
    steps: int
    events: int
    llm_calls: int
    untrainable_calls: int = Field(description="LLM calls without aligned token ids and log-probabilities")
    prompt_tokens: int
    completion_tokens: int
    total_reward: float | None = Field(description="null: it has no reward, which is not reward 0")
    final_balance: float | None
    final_pnl: float | None
    missing: int = Field(description="holes in seq: events that never arrived")
    started_at: datetime | None
    ended_at: datetime | None
    first_ingested_at: datetime
    trace_id: str | None = Field(description="OpenTelemetry trace of its play; null: not traced")


class EventRow(View):
    """One event as it arrived, and where it came from."""

    event_id: str
    seq: int
    kind: str
    step: int | None
    time: datetime
    ingested_at: datetime
    partition: int
    offset: int
    body: Any = Field(description="the event, unknown fields too")


class BatchRow(View):
    """A training batch."""

    batch_id: str
    channel: str
    status: str
    rule: str
    trajectories: int
    groups: int
    manifest: str | None
    manifest_sha256: str | None
    bytes: int | None
    created_at: datetime
    ready_at: datetime | None
    trace_id: str | None = Field(description="OpenTelemetry trace that goes on to the model; null: not traced")


class Member(View):
    """A trajectory in a batch."""

    trajectory_id: str
    revision: int
    latest_revision: int = Field(description="above revision: it changed after it was archived; the batch did not")
    group_id: str
    agent_id: str | None
    scenario_id: str | None
    model_version: str | None
    total_reward: float | None
    trace_id: str | None = Field(description="its own OpenTelemetry trace; null: not traced")


class JobRow(View):
    """One training of one batch."""

    job_id: str
    batch_id: str
    channel: str
    status: str
    attempt: int
    parent_version: str | None
    model_id: str | None
    version: str | None = Field(description="version of the model it made, once registered")
    steps_done: int
    steps_total: int
    counts: dict[str, Any] = Field(description="rows used, dropped and why")
    metrics: dict[str, Any]
    error: str | None
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    trace_id: str | None = Field(description="OpenTelemetry trace of its batch; null: not traced")


class BatchWhole(BatchRow):
    """A training batch with its members and what was trained on it."""

    members: list[Member]
    job: JobRow | None


class ModelRow(View):
    """A registered model."""

    model_id: str
    channel: str
    version: str
    number: int
    origin: str
    generation: int = Field(description="trainings since the import")
    parent_version: str | None
    batch_id: str | None
    job_id: str | None
    base_model: str | None
    artifact: dict[str, Any]
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    trained_at: datetime
    registered_at: datetime
    deployed: bool = Field(description="whether it is what its channel's agents shall run")
    trace_id: str | None = Field(description="OpenTelemetry trace that it was made in; null: not traced")


class DeploymentRow(View):
    """What the agents of a channel were told to run."""

    deployment_id: str
    channel: str
    model_id: str
    version: str
    number: int
    status: str
    share: float
    reason: str
    deployed_at: datetime
    ended_at: datetime | None
    loaded: int = Field(description="agents that said they loaded it")
    failed: int = Field(description="agents that said they could not")


class AckRow(View):
    """What an agent said of a deployment."""

    deployment_id: str
    agent_id: str
    channel: str
    version: str
    status: str
    error: str | None
    running_version: str | None
    load_seconds: float | None
    acked_at: datetime


class AgentRow(View):
    """An agent that follows a channel, and what it last said it runs."""

    agent_id: str
    channel: str
    running_version: str | None
    status: str
    error: str | None
    acked_at: datetime


class Lineage(View):
    """Where a model came from, and where it went."""

    ancestors: list[str] = Field(description="versions, parent first, back to the import")
    children: list[str] = Field(description="versions trained from it")
    batch: BatchRow | None
    job: JobRow | None
    trajectories: list[Member] = Field(description="exactly what it learned from")
    agents: list[str] = Field(description="agents that last said they run it")


class ModelWhole(ModelRow):
    """A registered model with its lineage and deployments."""

    lineage: Lineage
    deployments: list[DeploymentRow]


class ChannelRow(View):
    """What a channel runs."""

    channel: str
    version: str
    number: int
    deployment_id: str
    deployed_at: datetime
    agents: int = Field(description="agents that last said they run this version")


class RewardRow(View):
    """The play of one version on one split. Open play and failures of infrastructure say nothing and are left out."""

    channel: str | None
    version: str | None
    number: int | None = Field(description="null: a version that is not registered, or none")
    split: str
    trajectories: int = Field(description="those with a reward")
    mean: float
    stddev: float | None
    minimum: float
    maximum: float


class BrakeRow(View):
    """A consumer that is paused because too much of what came were dead letters; a person releases it."""

    consumer: str
    topic: str
    since: datetime
    reason: str


class Summary(View):
    """The whole loop in figures."""

    generated_at: datetime
    events: int
    trajectories: dict[str, int] = Field(description="by status")
    untrainable_calls: int
    missing_events: int = Field(description="holes in seq over all closed trajectories")
    dead_letters: dict[str, int] | None = Field(description="messages kept by topic; null: the broker was not reached")
    paused: list[BrakeRow] = Field(description="consumers whose brake is on")
    lag: dict[str, int] | None = Field(description="records not processed yet, by consumer and topic; null likewise")
    batches: dict[str, int] = Field(description="by status")
    jobs: dict[str, int] = Field(description="by status")
    models: int
    agents: int = Field(description="agents that follow a channel")
    channels: list[ChannelRow]
    reward_by_version: list[RewardRow]


class Problem(View):
    """RFC 9457: what went wrong, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, str]] | None = None
