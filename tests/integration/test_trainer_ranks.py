"""The trainer with two ranks, as a service: a rank that dies costs a try and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from flywheel import artifacts
from flywheel.settings import Connections
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.producer import Producer
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.training import IMPORTS_WITHIN_S, World, played
from tests.support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = {
    "FLYWHEEL_TRAINER_PROCESSES": "2",
    "FLYWHEEL_TRAINER_TUNING": "lora",
    "FLYWHEEL_TRAINER_MICRO_BATCH": "16",
    "FLYWHEEL_TRAINER_ITERATIONS": "150",
    "FLYWHEEL_TRAINER_LEASE_S": "3",
    "FLYWHEEL_TRAINER_POLL_S": "0.1",
    "FLYWHEEL_TRAINER_THREADS": "1",
}


@pytest_asyncio.fixture(scope="module")
async def trainer(service_process: ServiceProcesses, object_store: S3ObjectStore) -> ServiceProcess:
    object_store.ensure_bucket()
    process = await service_process("trainer", **SETTINGS).start(ready=False)
    await process.wait_ready(within=IMPORTS_WITHIN_S)
    return process


@pytest_asyncio.fixture
async def world(
    connections: Connections, object_store: S3ObjectStore, trainer: ServiceProcess, tmp_path: Path
) -> AsyncIterator[World]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield World(connections, object_store, producer, tmp_path)
    await producer.stop()


async def test_a_rank_that_dies_in_training_costs_a_try_and_the_model_comes(
    world: World, trainer: ServiceProcess
) -> None:
    await world.base()
    ready = await world.archive(played())
    await world.announce(ready)
    sql = "SELECT FROM training_jobs WHERE batch_id = $1 AND status = 'training' AND steps_done > 0"
    await eventually(lambda: world.query(sql, ready.batch_id), within=IMPORTS_WITHIN_S)
    (worker,) = psutil.Process(trainer.pid).children()
    (other,) = worker.children()
    other.kill()
    job = await world.job(ready, "completed", "failed", within=IMPORTS_WITHIN_S)
    assert (job["status"], job["attempt"]) == ("completed", 2), job["error"]
    assert job["steps_done"] == job["steps_total"] == 150
    (model,) = await eventually(world.models)
    fetched = artifacts.fetch(world.store, model.artifact, world.folder / "fetched")
    assert (fetched / "adapter" / "adapter_model.safetensors").exists()

    (worker,) = psutil.Process(trainer.pid).children()
    ranks = [worker, *worker.children()]
    assert len(ranks) == 2
    assert await trainer.stop() == 0
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
