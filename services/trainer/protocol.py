"""What the trainer and its worker process say to each other: one JSON object a line, over pipes.

The trainer says :class:`Setup` once, then an :class:`Order` a job, one at a time. The worker answers
:class:`Ready` once it can take orders, and to each order any number of :class:`Stage` and :class:`Steps`,
then one :class:`Done`, :class:`Skipped` or :class:`Failed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from flywheel.messages import Artifact
from flywheel.settings import TrainerSettings
from services.trainer.baseline.estimate import Baseline, Told
from services.trainer.calls import Policy
from services.trainer.ledger import Counts


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    def line(self) -> bytes:
        """Encode as one line."""
        return self.model_dump_json().encode() + b"\n"


class Setup(_Line):
    """What the worker needs for all jobs. Travels by pipe, so that secrets show in no list of processes."""

    connections: dict[str, str] = Field(description="of the object store: the worker needs nothing else")
    settings: TrainerSettings
    models: Path = Field(description="folder for fetched models")
    log_level: str = "info"


class Parent(_Line):
    """The model that training starts from."""

    version: str
    policy: Policy
    artifact: Artifact
    base_model: str | None = None


class Scores(_Line):
    """What the trajectories of a batch are worth, where it is not simply what was recorded."""

    values: dict[str, float] = Field(description="by trajectory id")
    unscored: dict[str, str] = Field(default_factory=dict, description="by trajectory id, why it has none")
    scorers: dict[str, str] = Field(default_factory=dict, description="by trajectory id, who gave the value")
    counts: dict[str, int] = Field(default_factory=dict, description="who scored how many, and how it went")
    about: dict[str, Any] = Field(default_factory=dict, description="scorers and judge, for the model's lineage")


class Order(_Line):
    """One job."""

    job_id: str
    batch_id: str
    channel: str
    manifest: str
    manifest_sha256: str
    model_id: str = Field(description="id that the new model shall have")
    started_at: AwareDatetime = Field(description="when the job was first taken up, by the database's clock")
    parent: Parent
    policies: dict[str, Policy] = Field(description="every version of the channel")
    scores: Scores | None = Field(default=None, description="none: the recorded reward is the score")
    baselines: dict[str, dict[str, Baseline]] = Field(
        default_factory=dict, description="by scorer and scenario, as they were when the job was first taken up"
    )


class Ready(_Line):
    """The worker has imported what it needs."""

    kind: Literal["ready"] = "ready"
    import_seconds: float
    libraries: dict[str, str]


class Stage(_Line):
    """The job moved on."""

    kind: Literal["stage"] = "stage"
    status: Literal["preparing", "training", "uploading"]


class Steps(_Line):
    """Optimizer steps done, of how many."""

    kind: Literal["steps"] = "steps"
    done: int
    total: int


class Done(_Line):
    """The model is stored."""

    kind: Literal["done"] = "done"
    artifact: Artifact
    counts: Counts
    metrics: dict[str, Any]
    told: Told = Told()


class Skipped(_Line):
    """The batch is sound and there is nothing to learn from it: no model comes of it, and that is no failure."""

    kind: Literal["skipped"] = "skipped"
    reason: Literal["no_signal"]
    message: str
    counts: Counts
    told: Told = Told()


class Failed(_Line):
    """The job cannot be done: ever (poison), now (transient), here (fatal), or for an unknown reason (unexpected)."""

    kind: Literal["failed"] = "failed"
    error: Literal["poison", "transient", "fatal", "unexpected"]
    reason: str
    message: str
    counts: Counts = Field(default_factory=dict)


class Joining(_Line):
    """Who a rank beside rank 0 is, and where it meets the others. Rank 0 says it to each, and then tasks."""

    rank: int
    port: int
    settings: TrainerSettings
    log_level: str


class Task(_Line):
    """A training that all ranks do together."""

    parent: Path = Field(description="folder of the model that it starts from")
    how: Path = Field(description="file with what training is called with, pickled")


Report = Annotated[Ready | Stage | Steps | Done | Skipped | Failed, Field(discriminator="kind")]
_report: TypeAdapter[Report] = TypeAdapter(Report)


def parse_report(line: bytes) -> Report:
    """Decode a line of the worker's. Raises pydantic.ValidationError."""
    return _report.validate_json(line)
