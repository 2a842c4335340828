"""Jobs on stored play, in this process: the worker's part of the trainer without its service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flywheel import artifacts
from flywheel.events import Event
from flywheel.settings import TrainerSettings
from flywheel.storage.memory import MemoryObjectStore
from services.trainer import job, models
from services.trainer.baseline.estimate import Baseline
from services.trainer.calls import Policy
from services.trainer.ledger import Ledger
from services.trainer.protocol import Done, Order, Parent, Scores, Skipped
from services.trainer.rank.crew import Crew
from tests.support.training import write
from tests.support.world import unique
from tests.training import builders

TEMPLATE = (
    "{% for message in messages %}<user> {{ message.content }} {% endfor %}{% if add_generation_prompt %}<agent> "
    "{% endif %}"
)


class Bench:
    """One job after another, each from ``artifact``: the tiny model at first."""

    def __init__(self, folder: Path) -> None:
        self.store, self.cache = MemoryObjectStore(), folder / "cache" / "models"
        self.cache.mkdir(parents=True)
        self.ledger = Ledger()
        spoken = builders.tokenizer()
        spoken.chat_template = TEMPLATE
        builders.tiny_model().save_pretrained(folder / "base")
        spoken.save_pretrained(folder / "base")
        self.artifact = artifacts.upload(self.store, folder / "base", "base", {})

    def train(
        self, batch: Sequence[Sequence[Event]], version: str = "1.0.0", *,
        baselines: Mapping[str, Mapping[str, Baseline]] | None = None, scores: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Done | Skipped:  # fmt: skip
        policies = {"1.0.0": Policy(1, 1), "1.1.0": Policy(2, 1)}
        ready = write(self.store, "default", batch)
        order = Order(
            job_id="j", batch_id=ready.batch_id, channel="default", manifest=ready.manifest, model_id=unique("m"),
            manifest_sha256=ready.manifest_sha256, policies=policies, started_at=datetime.now(UTC),
            parent=Parent(version=version, policy=policies[version], artifact=self.artifact),
            baselines={scorer: dict(known) for scorer, known in (baselines or {}).items()},
            scores=Scores.model_validate(scores) if scores else None,
        )  # fmt: skip
        self.ledger = Ledger()
        chosen = TrainerSettings(device="cpu", **{"micro_batch": 16, **settings})
        return job.run(order, chosen, self.store, self.cache, self.ledger, lambda _: None, Crew(chosen, "info"))

    def trained(self, batch: Sequence[Sequence[Event]], version: str = "1.0.0", **settings: Any) -> Done:
        """The answer of a job that there is something to learn from."""
        done = self.train(batch, version, **settings)
        assert isinstance(done, Done)
        return done

    def model(self, done: Done) -> Any:
        """What came of a job, as an agent gets it."""
        model, _ = models.load(artifacts.fetch(self.store, done.artifact, self.cache))
        return model
