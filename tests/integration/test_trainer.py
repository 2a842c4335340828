"""The trainer and its worker as processes, on the real Kafka, Postgres and S3."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from flywheel import artifacts
from flywheel.batches import read_batch
from flywheel.events import dump
from flywheel.settings import Connections
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.producer import Producer
from flywheel.topics import BATCHES
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.training import IMPORTS_WITHIN_S, SIZES, World, played
from tests.support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    "FLYWHEEL_TRAINER_MICRO_BATCH": "8",
    "FLYWHEEL_TRAINER_ITERATIONS": "2",
    "FLYWHEEL_TRAINER_LEARNING_RATE": "0.001",
    "FLYWHEEL_TRAINER_LEASE_S": "3",
    "FLYWHEEL_TRAINER_POLL_S": "0.1",
    "FLYWHEEL_TRAINER_THREADS": "1",
}


@pytest_asyncio.fixture(scope="module")
async def trainer(service_process: ServiceProcesses, object_store: S3ObjectStore) -> AsyncIterator[ServiceProcess]:
    object_store.ensure_bucket()
    process = await service_process("trainer", **SETTINGS).start(ready=False)
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
    return World(connections, object_store, producer, tmp_path)


async def looked_again(trainer: ServiceProcess) -> None:
    """Return when the trainer, from now on, has looked for a job and found none."""

    def looks() -> float:
        lines = trainer.get("/metrics")[1].splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("flywheel_trainer_looks_total "))

    before = looks()
    await eventually(lambda: looks() >= before + 2)  # the first of these may have begun before


async def test_a_batch_becomes_a_model_that_leads_back_to_it(world: World) -> None:
    base = await world.base()
    ready = await world.archive(played())
    await world.announce(ready)
    job = await world.job(ready, "completed", "failed")
    assert job["status"] == "completed", job["error"]
    assert (job["attempt"], job["parent_version"], job["claim"]) == (1, "1.0.0", None)
    assert job["steps_done"] == job["steps_total"] == 4  # 16 rows, micro-batches of 8, 2 passes

    counts, metrics = json.loads(job["counts"]), json.loads(job["metrics"])
    assert counts["trajectories"] == {"read": 16, "used": 16}
    assert counts["groups"] == {"compared": 3, "singletons": 1, "singletons_by_baseline": 0, "without_spread": 0}
    assert counts["staleness"] == {"0": 16}
    assert metrics["logp_diff_max"] < 1e-4  # trained on exactly the tokens that this model sampled
    assert metrics["steps"] == 4

    (model,) = await eventually(world.models)
    assert (model.model_id, model.job_id, model.batch_id) == (job["model_id"], job["job_id"], ready.batch_id)
    assert (model.origin, model.parent_version, model.base_model) == ("trained", "1.0.0", "tiny")
    lineage = artifacts.read_manifest(world.store, model.artifact).lineage
    assert lineage["batch_manifest_sha256"] == ready.manifest_sha256
    assert lineage["parent_model_id"] == base.model_id
    assert lineage["settings"]["learning_rate"] == 0.001
    assert lineage["libraries"]["trl"]
    folder = artifacts.fetch(world.store, model.artifact, world.folder / "fetched")
    assert differs(folder / "model.safetensors", world.folder / "base" / "model.safetensors")
    assert not differs(folder / "tokenizer.json", world.folder / "base" / "tokenizer.json")


async def test_an_announcement_that_comes_twice_trains_once(world: World) -> None:
    await world.base()
    ready = await world.archive(played())
    for _ in range(3):
        await world.announce(ready)
    await world.job(ready, "completed")
    await world.announce(ready)
    later = await world.archive([])
    await world.announce(later)
    await world.job(later, "pending", "failed")  # everything before it was handled
    assert len(await world.query("SELECT FROM training_jobs WHERE batch_id = $1", ready.batch_id)) == 1
    assert len(await world.models()) == 1


async def test_the_next_job_starts_from_the_last_ones_model(world: World, trainer: ServiceProcess) -> None:
    await world.base()
    first, second = await world.archive(played()), await world.archive(played())
    await world.announce(first)
    await world.announce(second)
    await world.job(first, "completed")
    await looked_again(trainer)
    assert (await world.job(second, "pending"))["attempt"] == 0, "its parent is not in the registry yet"
    (model,) = await eventually(world.models)
    await world.deploy("1.1.0", 2, model.artifact)
    job = await world.job(second, "completed")
    assert job["parent_version"] == "1.1.0"
    assert json.loads(job["counts"])["staleness"] == {"1": 16}
    assert json.loads(job["metrics"])["logp_diff_max"] > 1e-3


async def test_a_job_waits_for_its_channels_first_model(world: World, trainer: ServiceProcess) -> None:
    ready = await world.archive(played())
    await world.announce(ready)
    await world.job(ready, "pending")
    await looked_again(trainer)
    assert (await world.job(ready, "pending"))["attempt"] == 0
    assert trainer.is_ready()
    await world.base()
    await world.job(ready, "completed")


async def test_a_batch_that_was_changed_fails_with_the_reason(world: World) -> None:
    await world.base()
    ready = await world.archive(played())
    manifest, _ = read_batch(world.store, ready.manifest, ready.manifest_sha256)
    key = manifest.files[0].key
    data = bytearray(world.store.get(key))
    data[len(data) // 2] ^= 1
    world.store.put(key, bytes(data))
    await world.announce(ready)
    job = await world.job(ready, "failed", "completed")
    assert (job["status"], job["attempt"], job["model_id"]) == ("failed", 1, None)
    assert key in job["error"]
    assert await world.models() == []


async def test_a_batch_without_trainable_rows_fails_and_says_why(world: World) -> None:
    await world.base()
    ready = await world.archive(played(completion_logprobs=None))
    await world.announce(ready)
    job = await world.job(ready, "failed", "completed")
    assert job["error"].startswith("no trainable rows")
    counts = json.loads(job["counts"])
    assert counts["trajectories_dropped"] == {"no_rows": sum(SIZES)}
    assert counts["calls_dropped"]["no_logprobs"] == counts["calls"]["read"]
    assert await world.models() == []


async def test_play_of_an_unknown_policy_is_left_out_and_counted(world: World) -> None:
    await world.base()
    strangers = played("7.7.7", sizes=(3,))
    ready = await world.archive([*played(), *strangers])
    await world.announce(ready)
    job = await world.job(ready, "completed", "failed")
    counts = json.loads(job["counts"])
    assert counts["trajectories"]["used"] == sum(SIZES)
    assert counts["calls_dropped"] == {
        "unknown_version": sum(b'"llm_call"' in dump(event) for play in strangers for event in play)
    }


async def test_what_is_no_announcement_is_a_dead_letter_and_the_rest_flows(world: World) -> None:
    await world.base()
    await world.producer.send_and_wait(BATCHES.name, "x", b"not json")
    ready = await world.archive(played())
    await world.announce(ready)
    await world.job(ready, "completed")


def differs(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()
