"""The trainer's loop on a real Postgres when scoring breaks and when its claim is lost; the worker is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
import pytest_asyncio

from flywheel.events import Event
from flywheel.health import Health
from flywheel.messages import Artifact, BatchReady
from flywheel.scoring_settings import ScoringRule, ScoringSettings
from flywheel.settings import TrainerSettings
from flywheel.storage.memory import MemoryObjectStore
from flywheel.storage.postgres import connect
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.record import Record
from flywheel.topics import BATCHES
from services.trainer import app
from services.trainer.app import Trainer
from services.trainer.protocol import Order, Setup, Skipped, Stage, Steps
from services.trainer.rows import Ledger
from services.trainer.scoring import batch as scoring
from services.trainer.worker_process import WorkerDied, WorkerProcess
from tests.support.scoring import attempt
from tests.support.training import write
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = pytest.mark.stack

SETTINGS = TrainerSettings(attempts=2, lease_s=1.0, poll_s=0.05)
SCORING = ScoringSettings(rules=[ScoringRule(channel="weighed-*", scorer="weighted", weights={"profit": 2.0})])


class StandIn(WorkerProcess):
    """A worker that finds nothing to learn, as soon as ``go`` is set; counts how often it was killed."""

    def __init__(self) -> None:
        super().__init__(Setup(connections={}, settings=SETTINGS, models=Path()), Health())
        self.ready.set()
        self.go = asyncio.Event()
        self.go.set()
        self.orders: list[Order] = []
        self.killed = 0

    async def train(self, order: Order, listen: Callable[[Stage | Steps], None]) -> Skipped:
        self.orders.append(order)
        killed = self.killed
        await self.go.wait()
        if self.killed > killed:
            raise WorkerDied("killed")
        return Skipped(reason="no_signal", message="nothing", counts=Ledger().as_dict())

    def abort(self) -> None:
        self.killed += 1
        self.go.set()


class Loop:
    """A trainer at work, and the batches it gets."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool, self.objects, self.worker = pool, MemoryObjectStore(), StandIn()
        relay = cast(OutboxRelay, None)  # nothing is announced: no model comes of these batches
        self.trainer = Trainer(pool, self.objects, self.worker, relay, SETTINGS, SCORING, Health())

    async def batch(self, prefix: str, components: dict[str, float] | None = None) -> BatchReady:
        """Announce a batch in a channel of its own that has a model."""
        channel = unique(prefix)
        artifact = Artifact(model_id=unique("model"), manifest="none", manifest_sha256="0" * 64, bytes=1)
        await self.pool.execute(
            "INSERT INTO models (model_id, channel, version, number, origin, base_model, artifact, trained_at)"
            " VALUES ($1, $2, '1.0.0', 1, 'imported', 'tiny', $3::jsonb, now())",
            artifact.model_id, channel, artifact.model_dump_json(),
        )  # fmt: skip
        await self.pool.execute(
            "INSERT INTO deployments (deployment_id, channel, model_id, version, number, status, reason)"
            " VALUES ($1, $2, $3, '1.0.0', 1, 'active', 'test')", unique("d"), channel, artifact.model_id,
        )  # fmt: skip
        group = unique("g")
        plays: list[list[Event]] = [attempt(f"a-{n}", group=group, components=components) for n in range(2)]
        plays.sort(key=lambda events: events[0].trajectory_id)
        ready = write(self.objects, channel, plays)
        await self.trainer.on_batches([Record(BATCHES.name, 0, 0, None, ready.dump(), (), 0)])
        return ready

    async def job(self, ready: BatchReady, *statuses: str) -> Any:
        """The batch's job, once it has one of these statuses."""
        sql = "SELECT * FROM training_jobs WHERE batch_id = $1 AND status = ANY($2)"
        return await eventually(lambda: self.pool.fetchrow(sql, ready.batch_id, list(statuses)))

    async def take_away(self, ready: BatchReady) -> None:
        """Let another trainer have the job."""
        await self.pool.execute(
            "UPDATE training_jobs SET claim = 'another', claim_until = now() + interval '1 hour' WHERE batch_id = $1",
            ready.batch_id,
        )


@pytest_asyncio.fixture
async def loop(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loop]:
    monkeypatch.setattr(app, "_RETRY_S", 0.05)
    pool = await connect(database)
    loop, stop = Loop(pool), asyncio.Event()
    running = asyncio.create_task(loop.trainer.run(stop))
    yield loop
    stop.set()
    await running  # whatever came of the jobs, the trainer lives
    await pool.close()


async def test_what_breaks_scoring_fails_its_job_and_no_other(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    write_judgments = scoring.write_judgments

    async def broken(pool: asyncpg.Pool, batch_id: str, group_id: str, scores: Any, *args: Any) -> None:
        if any(score.value == 26 for score in scores.values()):
            raise asyncpg.DataError("no such number")
        await write_judgments(pool, batch_id, group_id, scores, *args)

    monkeypatch.setattr(scoring, "write_judgments", broken)
    bad = await loop.batch("weighed", {"profit": 13.0})
    job = await loop.job(bad, "failed", "skipped")
    assert (job["status"], job["attempt"], job["claim"]) == ("failed", 2, None)
    assert job["error"] == "failed in try 2: DataError: no such number"
    good = await loop.batch("weighed", {"profit": 1.0})
    await loop.job(good, "skipped")
    assert [order.batch_id for order in loop.worker.orders] == [good.batch_id]


async def test_scores_beyond_every_number_are_none(loop: Loop) -> None:
    ready = await loop.batch("weighed", {"profit": 1.7e308})
    await loop.job(ready, "skipped")
    (order,) = loop.worker.orders
    assert order.scores is not None
    assert (order.scores.values, order.scores.counts) == ({}, {"unscored_not_finite": 2})
    found = await loop.pool.fetch("SELECT unscored, score FROM judgments WHERE batch_id = $1", ready.batch_id)
    assert [tuple(row) for row in found] == [("not_finite", None)] * 2


async def test_a_claim_lost_while_scoring_leaves_the_worker_alone(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()

    async def wait(*args: Any) -> None:
        await held.wait()

    monkeypatch.setattr(scoring, "write_judgments", wait)
    lost = await loop.batch("weighed", {"profit": 1.0})
    await loop.job(lost, "scoring")
    await loop.take_away(lost)
    other = await loop.batch("recorded")
    await loop.job(other, "skipped")  # it went on
    assert loop.worker.killed == 0
    assert [order.batch_id for order in loop.worker.orders] == [other.batch_id]


async def test_a_claim_lost_while_training_stops_the_training(loop: Loop) -> None:
    loop.worker.go.clear()
    lost = await loop.batch("recorded")
    await eventually(lambda: loop.worker.orders)
    await loop.take_away(lost)
    other = await loop.batch("recorded")
    await loop.job(other, "skipped")
    assert loop.worker.killed == 1
    assert [order.batch_id for order in loop.worker.orders] == [lost.batch_id, other.batch_id]
