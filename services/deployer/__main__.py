"""Runs the deployer: ``python -m services.deployer``."""

from __future__ import annotations

import asyncio
import sys

from flywheel.service import Service, run_service
from flywheel.settings import Connections, DeployerSettings, ServiceSettings
from flywheel.storage import postgres
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.producer import Producer
from flywheel.topics import ACKS, MODELS
from services.deployer.app import Deployer

_GROUP = "flywheel-deployer"
_MEASURE_EVERY_S = 5.0


async def run(service: Service, connections: Connections) -> None:
    """Wire the deployer and run it until the service is asked to stop; publish what is left, then return."""
    kafka = Cluster(connections)
    pool = await service.until_it_works("postgres", lambda: postgres.connect(connections.postgres))
    producer = Producer(kafka, client_id=_GROUP)
    try:
        await service.until_it_works("postgres", lambda: postgres.migrate(pool))
        await service.until_it_works("kafka", producer.start)
        await service.until_it_works(
            "kafka", lambda: ensure_topics(kafka, replication=service.settings.topic_replication)
        )
        relay = OutboxRelay(pool, producer, service.health)
        deployer = Deployer(pool, S3ObjectStore.from_settings(connections), relay)
        await service.until_it_works("postgres", deployer.heal)
        app = DurableApp(
            _GROUP, kafka, replication=service.settings.topic_replication, var=service.settings.var,
            health=service.health, dead=DeadLetters(producer, service.name),
        )  # fmt: skip
        app.agent(MODELS, deployer.on_models, max_batch=1)
        app.agent(ACKS, deployer.on_acks)
        app.timer(_MEASURE_EVERY_S, deployer.measure)
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(drained))
            await app.run(service.stop)
            drained.set()  # only now: what the last handler enqueued is published too
    finally:
        await producer.close()
        pool.terminate()  # nothing is in hand, and a database that hangs must not hold us up


def main() -> int:
    """Read the settings, run, and return the exit status."""
    connections, settings = Connections.load(), DeployerSettings.load()
    return asyncio.run(
        run_service(
            "deployer",
            ServiceSettings.load(),
            settings.metrics_port,
            lambda service: run(service, connections),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
