"""Runs the archiver: ``python -m services.archiver``."""

from __future__ import annotations

import asyncio
import sys

from flywheel.service import Service, run_service
from flywheel.settings import ArchiverSettings, Connections, ServiceSettings
from flywheel.storage import postgres
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.producer import Producer
from flywheel.topics import TRAJECTORIES
from services.archiver.app import Archiver
from services.archiver.days import DayKeeper

_GROUP = "flywheel-archiver"


async def run(service: Service, connections: Connections, settings: ArchiverSettings) -> None:
    """Wire the archiver and run it until the service is asked to stop; publish what is left, then return."""
    kafka = Cluster(connections)
    pool = await service.until_it_works("postgres", lambda: postgres.connect(connections.postgres))
    producer = Producer(kafka, client_id=_GROUP)
    objects = S3ObjectStore.from_settings(connections)
    try:
        await service.until_it_works("postgres", lambda: postgres.migrate(pool))
        await service.until_it_works("kafka", producer.start)
        await service.until_it_works(
            "kafka", lambda: ensure_topics(kafka, replication=service.settings.topic_replication)
        )
        await service.until_it_works("archive", lambda: asyncio.to_thread(objects.ensure_bucket))
        relay = OutboxRelay(pool, producer, service.health)
        archiver = Archiver(pool, objects, relay, settings, service.health)
        app = DurableApp(
            _GROUP, kafka, replication=service.settings.topic_replication, var=service.settings.var,
            health=service.health, dead=DeadLetters(producer, service.name),
        )  # fmt: skip
        app.agent(TRAJECTORIES, archiver.on_trajectories, within=0.1)
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(drained))
            archiving = tasks.create_task(archiver.run(service.stop))
            tasks.create_task(DayKeeper(pool, objects, settings, service.health).run(service.stop))
            await app.run(service.stop)
            await archiving
            drained.set()  # only now: what the last handler enqueued is published too
    finally:
        await producer.close()
        pool.terminate()  # nothing is in hand, and a database that hangs must not hold us up


def main() -> int:
    """Read the settings, run, and return the exit status."""
    connections, settings = Connections.load(), ArchiverSettings.load()
    return asyncio.run(
        run_service(
            "archiver",
            ServiceSettings.load(),
            settings.metrics_port,
            lambda service: run(service, connections, settings),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
