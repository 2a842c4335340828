"""Batches to be scored by a judge, without a trainer around it: real HTTP, real Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg

from flywheel.events import Event
from flywheel.messages import Artifact, BatchReady
from flywheel.scoring_settings import ScoringSettings
from flywheel.storage.memory import MemoryObjectStore
from services.trainer.calls import Policy
from services.trainer.protocol import Order, Parent, Scores
from services.trainer.scoring.batch import BatchScoring
from tests.support.judge import Judge
from tests.support.scoring import attempt
from tests.support.training import write
from tests.support.world import unique

PATIENCE: dict[str, Any] = {
    "scorer": "ruler", "judge_model": "judge-1", "judge_timeout_s": 0.5, "judge_retries": 1, "judge_corrections": 1,
    "judge_passes": 2, "price_prompt": 2.0, "price_completion": 10.0,
}  # fmt: skip


class Bench:
    """One batch, to be scored by one judge."""

    def __init__(self, pool: asyncpg.Pool, judge: Judge, plays: Sequence[Sequence[Event]]) -> None:
        self.pool, self.judge, self.plays = pool, judge, plays
        self.store = MemoryObjectStore()
        self.heard: list[tuple[int, int]] = []
        self.order = order(write(self.store, "default", plays))

    async def score(self, **settings: Any) -> Scores:
        found = ScoringSettings.model_validate({**PATIENCE, "judge_url": self.judge.url, **settings})
        scoring = BatchScoring(self.pool, self.store, found, lambda work: work())
        return await scoring.score(self.order, lambda done, of: self.heard.append((done, of)))

    async def calls(self) -> list[asyncpg.Record]:
        return await self.pool.fetch(
            "SELECT * FROM judge_calls WHERE batch_id = $1 ORDER BY asked_at", self.order.batch_id
        )

    async def judgments(self) -> dict[str, asyncpg.Record]:
        found = await self.pool.fetch("SELECT * FROM judgments WHERE batch_id = $1", self.order.batch_id)
        return {row["trajectory_id"]: row for row in found}

    def names(self) -> list[str]:
        return [play[0].trajectory_id for play in self.plays]


def order(ready: BatchReady) -> Order:
    policy = Policy(1, 1)
    artifact = Artifact(model_id="m", manifest="x", manifest_sha256="0" * 64, bytes=1)
    return Order(
        job_id="j", batch_id=ready.batch_id, channel=ready.channel, manifest=ready.manifest,
        manifest_sha256=ready.manifest_sha256, model_id="n", policies={"1.0.0": policy},
        started_at=datetime.now(UTC),
        parent=Parent(version="1.0.0", policy=policy, artifact=artifact),
    )  # fmt: skip


def fresh(*qualities: float) -> list[list[Event]]:
    """A group that no cache knows: its rewards are the opposite of what the judge thinks."""
    salt = unique("x")
    group = unique("g")
    return [attempt(f"{salt} quality={q}", group=group, reward=1 - q) for q in qualities]


def again(plays: Sequence[Sequence[Event]]) -> list[list[Event]]:
    """The same play, by others."""
    found = []
    for play in plays:
        name = unique("t")
        found.append([event.model_copy(update={"trajectory_id": name, "event_id": uuid4()}) for event in play])
    return found
