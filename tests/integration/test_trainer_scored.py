"""The trainer with a judge: scores reach the model's lineage, a crash pays nothing twice, no signal is no failure."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flywheel import artifacts
from flywheel.events import Event, LLMCall, Step
from flywheel.settings import Connections
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.producer import Producer
from tests.support import judge as judging
from tests.support.judge import Judge
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.training import IMPORTS_WITHIN_S, SIZES, World, played
from tests.support.waiting import eventually
from tests.support.world import unique

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

#: Two questions a group that has something to compare.
QUESTIONS = 2 * sum(size > 1 for size in SIZES)


@pytest_asyncio.fixture(scope="module")
async def server() -> AsyncIterator[Judge]:
    async with Judge() as judge:
        yield judge


@pytest.fixture
def judge(server: Judge) -> Judge:
    server.asked.clear()
    server.modes, server.hold = [], None
    return server


@pytest_asyncio.fixture(scope="module")
async def trainer(
    service_process: ServiceProcesses, object_store: S3ObjectStore, server: Judge
) -> AsyncIterator[ServiceProcess]:
    object_store.ensure_bucket()
    settings = {
        "FLYWHEEL_TRAINER_MICRO_BATCH": "16",
        "FLYWHEEL_TRAINER_ITERATIONS": "40",
        "FLYWHEEL_TRAINER_LEASE_S": "3",
        "FLYWHEEL_TRAINER_POLL_S": "0.1",
        "FLYWHEEL_TRAINER_THREADS": "1",
        "FLYWHEEL_SCORING_RULES": json.dumps([{"channel": "judged-*", "scorer": "ruler"}]),
        "FLYWHEEL_SCORING_JUDGE_URL": server.url,
        "FLYWHEEL_SCORING_JUDGE_MODEL": "judge-1",
        "FLYWHEEL_SCORING_JUDGE_RETRIES": "0",
        "FLYWHEEL_SCORING_JUDGE_TIMEOUT_S": "60",
    }
    process = await service_process("trainer", **settings).start(ready=False)
    await process.wait_ready(within=IMPORTS_WITHIN_S)
    yield process


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
def world(
    connections: Connections, object_store: S3ObjectStore, producer: Producer, trainer: ServiceProcess, tmp_path: Path
) -> World:
    world = World(connections, object_store, producer, tmp_path)
    world.channel = unique("judged")
    return world


def worded(plays: Sequence[Sequence[Event]], qualities: Sequence[float]) -> list[list[Event]]:
    """The same play, in which the last answer reads as good as this to the judge."""
    salt = unique("x")
    found: list[list[Event]] = []
    for play, quality in zip(plays, qualities, strict=True):
        last = max(event.seq for event in play if isinstance(event, LLMCall))
        words = {"response": f"{salt} quality={quality}"}
        found.append([event.model_copy(update=words) if event.seq == last else event for event in play])
    return found


def rewarded(plays: Sequence[Sequence[Event]], reward: float | None) -> list[list[Event]]:
    change = {"reward": reward}
    return [
        [e.model_copy(update=change) if isinstance(e, Step) and e.done else e for e in play] for play in plays
    ]  # fmt: skip


def good(number: int) -> list[float]:
    chance = random.Random(7)
    return [round(chance.random(), 3) for _ in range(number)]


async def test_a_judged_batch_becomes_a_model_that_says_who_judged(world: World, judge: Judge) -> None:
    await world.base()
    qualities = good(sum(SIZES))
    ready = await world.archive(rewarded(worded(played(), qualities), None))  # nobody but the judge has an opinion
    judge.hold = asyncio.Event()
    await world.announce(ready)
    assert (await world.job(ready, "scoring"))["groups_total"] == len(SIZES)
    judge.hold.set()
    job = await world.job(ready, "completed", "failed", "skipped")
    assert job["status"] == "completed", job["error"]
    assert (job["groups_scored"], job["groups_total"]) == (len(SIZES), len(SIZES))
    assert len(judge.asked) == QUESTIONS

    counts = json.loads(job["counts"])
    judged = sum(size for size in SIZES if size > 1)
    assert counts["scoring"] == {"ruler": judged, "unscored_nothing_to_compare": 1}
    assert counts["trajectories"] == {"read": sum(SIZES), "used": judged}
    assert counts["trajectories_dropped"] == {"nothing_to_compare": 1}
    rows = await world.query("SELECT * FROM judgments WHERE batch_id = $1", ready.batch_id)
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert len(rows) == sum(SIZES) and set(scores) <= set(qualities)
    assert json.loads(job["metrics"])["reward_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    (model,) = await eventually(world.models)
    lineage: dict[str, Any] = artifacts.read_manifest(world.store, model.artifact).lineage
    assert lineage["scoring"] == {
        "scorers": ["ruler"], "judge_models": ["judge-1"], "prompt_hashes": [rows[0]["prompt_hash"] or
        next(row["prompt_hash"] for row in rows if row["prompt_hash"])], "passes": 2,
    }  # fmt: skip


async def test_kill_9_between_judging_and_training_pays_nothing_twice(
    world: World, trainer: ServiceProcess, judge: Judge
) -> None:
    await world.base()
    ready = await world.archive(worded(played(), good(sum(SIZES))))
    await world.announce(ready)
    sql = "SELECT FROM judge_calls WHERE batch_id = $1 AND verdict IS NOT NULL"

    async def all_answered() -> bool:
        return len(await world.query(sql, ready.batch_id)) == QUESTIONS

    await eventually(all_answered, within=60)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.kill()
    await trainer.start(ready=False)
    job = await world.job(ready, "completed", "failed", within=IMPORTS_WITHIN_S)
    assert (job["status"], job["attempt"]) == ("completed", 2), job["error"]
    assert len(judge.asked) == QUESTIONS
    assert json.loads(job["counts"])["scoring"]["cached"] == sum(size for size in SIZES if size > 1)


async def test_a_trainer_that_stops_while_it_scores_puts_its_job_back(
    world: World, trainer: ServiceProcess, judge: Judge
) -> None:
    await world.base()
    ready = await world.archive(worded(played(), good(sum(SIZES))))
    judge.hold = asyncio.Event()
    await world.announce(ready)
    await world.job(ready, "scoring")
    assert await trainer.stop() == 0
    job = await world.job(ready, "pending")
    assert (job["attempt"], job["claim"]) == (0, None)
    judge.hold.set()
    judge.hold = None
    await trainer.start(ready=False)
    assert (await world.job(ready, "completed", within=IMPORTS_WITHIN_S))["attempt"] == 1


async def test_a_judge_that_is_away_costs_no_batch(world: World, judge: Judge) -> None:
    await world.base()
    judge.modes = [judging.status(503)]
    ready = await world.archive(worded(played(), good(sum(SIZES))))
    await world.announce(ready)
    job = await world.job(ready, "completed", "failed")
    assert job["status"] == "completed", job["error"]
    compared = sum(size for size in SIZES if size > 1)
    counts = json.loads(job["counts"])["scoring"]
    assert counts == {"recorded": compared, "fallback_judge_down": compared, "unscored_nothing_to_compare": 1}


async def test_a_batch_whose_scores_are_all_the_same_is_skipped_and_says_why(
    world: World, trainer: ServiceProcess
) -> None:
    world.channel = unique("channel")
    await world.base()
    ready = await world.archive(rewarded(played(), 0.5))
    await world.announce(ready)
    job = await world.job(ready, "skipped", "completed", "failed")
    assert (job["status"], job["reason"], job["model_id"], job["claim"]) == ("skipped", "no_signal", None, None)
    assert job["error"].startswith("nothing to learn")
    assert json.loads(job["counts"])["scoring"] == {"recorded": sum(SIZES)}
    assert job["finished_at"] is not None
    assert await world.models() == []
    _, metrics = trainer.get("/metrics")
    assert 'flywheel_trainer_jobs_total{status="skipped"} 1.0' in str(metrics)


async def test_a_judge_without_preferences_teaches_nothing(world: World, judge: Judge) -> None:
    await world.base()
    ready = await world.archive(worded(played(), [0.5] * sum(SIZES)))
    judge.modes = [judging.changed(lambda said: [{**one, "score": 0.5} for one in said])]
    await world.announce(ready)
    job = await world.job(ready, "skipped", "completed", "failed")
    assert (job["status"], job["reason"]) == ("skipped", "no_signal"), job["error"]
