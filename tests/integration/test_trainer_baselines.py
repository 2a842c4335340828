"""Baselines in a real Postgres: told once by each job that ends, and the same for all its tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from flywheel.messages import Artifact, BatchReady
from flywheel.scoring_settings import ScoringSettings
from flywheel.storage.memory import MemoryObjectStore
from flywheel.storage.postgres import connect
from services.trainer import store
from services.trainer.baseline import store as baseline
from services.trainer.baseline.estimate import Baseline, Observed, Told
from services.trainer.ledger import Ledger
from services.trainer.protocol import Done, Skipped
from services.trainer.scoring.batch import BatchScoring
from services.trainer.store import Claimed
from tests.support.scoring import attempt
from tests.support.scoring_bench import order
from tests.support.training import write
from tests.support.world import unique

pytestmark = pytest.mark.stack

DECAY = 0.5


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await connect(database)
    yield pool
    await pool.close()


def told(*rewards: float, scorer: str = "recorded", scenario: str = "s") -> Told:
    return Told(observed={scorer: {scenario: Observed.of(rewards)}}, decay=DECAY)


class Channel:
    """A channel with a deployed model, and jobs on it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool, self.name = pool, unique("channel")

    async def deploy(self) -> Channel:
        artifact = Artifact(model_id=unique("model"), manifest="none", manifest_sha256="0" * 64, bytes=1)
        await self.pool.execute(
            "INSERT INTO models (model_id, channel, version, number, origin, base_model, artifact, trained_at)"
            " VALUES ($1, $2, '1.0.0', 1, 'imported', 'tiny', $3::jsonb, now())",
            artifact.model_id, self.name, artifact.model_dump_json(),
        )  # fmt: skip
        await self.pool.execute(
            "INSERT INTO deployments (deployment_id, channel, model_id, version, number, status, reason)"
            " VALUES ($1, $2, $3, '1.0.0', 1, 'active', 'test')", unique("d"), self.name, artifact.model_id,
        )  # fmt: skip
        return self

    async def announce(self) -> None:
        ready = BatchReady(
            batch_id=unique("batch"), channel=self.name, manifest="m", manifest_sha256="0" * 64, trajectories=1,
            groups=1, rule="test",
        )  # fmt: skip
        await store.add_jobs(self.pool, [ready])

    async def claim(self, *, lease_s: float = 60.0) -> Claimed:
        job = await store.claim(self.pool, lease_s=lease_s, registration_wait_s=0.0)
        assert job is not None and job.order.channel == self.name
        return job

    async def known(self) -> dict[tuple[str, str], Baseline]:
        rows = await self.pool.fetch("SELECT * FROM reward_baselines WHERE channel = $1", self.name)
        return {
            (row["scorer"], row["scenario"]): Baseline(**{name: row[name] for name in Baseline.model_fields})
            for row in rows
        }


@pytest_asyncio.fixture
async def channel(pool: asyncpg.Pool) -> AsyncIterator[Channel]:
    channel = await Channel(pool).deploy()
    await channel.announce()
    yield channel
    await pool.execute("DELETE FROM training_jobs WHERE channel = $1", channel.name)


def done(job: Claimed, what: Told) -> Done:
    artifact = Artifact(model_id=job.order.model_id, manifest="m", manifest_sha256="0" * 64, bytes=1)
    return Done(artifact=artifact, counts=Ledger().as_dict(), metrics={"steps": 1}, told=what)


def skipped(what: Told) -> Skipped:
    return Skipped(reason="no_signal", message="nothing", counts=Ledger().as_dict(), told=what)


def after(*batches: Sequence[float]) -> Baseline:
    known = Baseline()
    for batch in batches:
        known = known.after(Observed.of(batch), DECAY)
    return known


async def test_each_job_that_ends_tells_once_and_the_next_one_knows(channel: Channel) -> None:
    job = await channel.claim()
    assert job.order.baselines == {}
    assert await store.complete(channel.pool, job, done(job, told(1.0, 2.0)))
    assert not await store.complete(channel.pool, job, done(job, told(1.0, 2.0))), "it is not ours any more"
    assert await channel.known() == {("recorded", "s"): after([1.0, 2.0])}
    await channel.announce()
    second = await channel.claim()
    assert second.order.baselines == {"recorded": {"s": after([1.0, 2.0])}}
    assert await store.skip(channel.pool, second, skipped(told(4.0)))
    assert await channel.known() == {("recorded", "s"): after([1.0, 2.0], [4.0])}, "or nobody would ever have one"


async def test_tries_that_came_to_nothing_tell_nothing_and_all_tries_know_the_same(channel: Channel) -> None:
    first = await channel.claim()
    assert await store.put_back(channel.pool, first, counts_as_attempt=True)
    await channel.pool.execute("UPDATE training_jobs SET not_before = NULL")
    vanished = await channel.claim(lease_s=0.01)
    await asyncio.sleep(0.05)
    # Meanwhile another job of the channel has told something: what this one compares with stays what it was.
    async with channel.pool.acquire() as conn, conn.transaction():
        await baseline.learn(conn, "another", channel.name, told(9.0, 8.0))
    last = await channel.claim()
    assert first.order.baselines == vanished.order.baselines == last.order.baselines == {}
    assert not await store.complete(channel.pool, vanished, done(vanished, told(1.0))), "it was thought dead"
    assert await store.complete(channel.pool, last, done(last, told(1.0)))
    assert await channel.known() == {("recorded", "s"): after([9.0, 8.0], [1.0])}
    kept = await channel.pool.fetchval("SELECT baselines FROM training_jobs WHERE job_id = $1", last.order.job_id)
    assert kept is None, "nobody needs them any more"


async def test_a_job_that_fails_tells_nothing(channel: Channel) -> None:
    job = await channel.claim()
    assert await store.fail(channel.pool, job, "broken", {})
    assert await channel.known() == {}


async def test_scales_and_channels_do_not_mix(channel: Channel, pool: asyncpg.Pool) -> None:
    job = await channel.claim()
    assert await store.complete(pool, job, done(job, told(1.0, scorer="weighted")))
    await channel.announce()
    second = await channel.claim()
    assert second.order.baselines == {"weighted": {"s": after([1.0])}}
    assert await store.complete(pool, second, done(second, told(5.0)))
    assert await channel.known() == {("weighted", "s"): after([1.0]), ("recorded", "s"): after([5.0])}
    other = await Channel(pool).deploy()
    await other.announce()
    assert (await other.claim()).order.baselines == {}
    await pool.execute("DELETE FROM training_jobs WHERE channel = $1", other.name)


async def test_two_that_end_at_once_both_count(channel: Channel, pool: asyncpg.Pool) -> None:
    async def tell(reward: float) -> None:
        async with pool.acquire() as conn, conn.transaction():
            await baseline.learn(conn, "j", channel.name, Told(observed=told(reward).observed, decay=1.0))

    await asyncio.gather(*(tell(float(n)) for n in range(8)))
    (known,) = (await channel.known()).values()
    assert (known.weight, known.mean, known.m2) == (8.0, pytest.approx(3.5), pytest.approx(42.0))


async def test_scenarios_without_number_do_not_grow_without_bound(
    channel: Channel, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "_MOST", 3)
    for n in range(6):
        async with pool.acquire() as conn, conn.transaction():
            await baseline.learn(conn, "j", channel.name, told(1.0, scenario=f"s{n}"))
    assert sorted(scenario for _, scenario in await channel.known()) == ["s3", "s4", "s5"]
    assert sorted((await channel.claim()).order.baselines["recorded"]) == ["s3", "s4", "s5"]


@pytest.mark.parametrize("text_counts", [False, True])
async def test_text_is_scored_where_it_may_be_trained_on(pool: asyncpg.Pool, text_counts: bool) -> None:
    plays: list[Any] = [attempt(f"a{n}", group="g", trainable=False, components={"profit": n}) for n in range(2)]
    objects = MemoryObjectStore()
    settings = ScoringSettings(scorer="weighted", weights={"profit": 2.0})
    scoring = BatchScoring(pool, objects, settings, lambda work: work(), text_counts=text_counts)
    scores = await scoring.score(order(write(objects, "default", plays)), lambda done, of: None)
    names = [play[0].trajectory_id for play in plays]
    assert scores.values == ({names[0]: 0.0, names[1]: 2.0} if text_counts else {})
    assert scores.scorers == (dict.fromkeys(names, "weighted") if text_counts else {})
    assert scores.unscored == ({} if text_counts else dict.fromkeys(names, "no_trainable_calls"))
