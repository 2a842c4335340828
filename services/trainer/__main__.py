"""Runs the trainer: ``python -m services.trainer``."""

from __future__ import annotations

import asyncio
import sys

from flywheel.connection_settings import S3Connection
from flywheel.scoring_settings import ScoringSettings
from flywheel.service import Service, run_service
from flywheel.settings import Connections, ServiceSettings, TrainerSettings
from flywheel.storage import postgres
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.producer import Producer
from flywheel.topics import BATCHES
from services.trainer.app import Trainer
from services.trainer.protocol import Setup
from services.trainer.worker_process import WorkerProcess

_GROUP = "flywheel-trainer"


async def run(service: Service, connections: Connections, settings: TrainerSettings, scoring: ScoringSettings) -> None:
    """Wire the trainer and run it until the service is asked to stop; publish what is left, then return."""
    kafka = Cluster(connections)
    store = connections.model_dump(mode="json", include=set(S3Connection.model_fields), exclude_none=True)
    worker = WorkerProcess(
        Setup(
            connections=store | {"s3_secret_key": connections.s3_secret_key.get_secret_value()},
            settings=settings,
            models=service.settings.var / "trainer" / "models",
            log_level=service.settings.log_level,
        ),
        service.health,
    )
    pool = await service.until_it_works("postgres", lambda: postgres.connect(connections.postgres))
    producer = Producer(kafka, client_id=_GROUP)
    try:
        await service.until_it_works("postgres", lambda: postgres.migrate(pool))
        await service.until_it_works("kafka", producer.start)
        await service.until_it_works(
            "kafka", lambda: ensure_topics(kafka, replication=service.settings.topic_replication)
        )
        relay = OutboxRelay(pool, producer, service.health)
        trainer = Trainer(
            pool, S3ObjectStore.from_settings(connections), worker, relay, settings, scoring, service.health
        )
        app = DurableApp(
            _GROUP, kafka, replication=service.settings.topic_replication, var=service.settings.var,
            health=service.health, dead=DeadLetters(producer, service.name),
        )  # fmt: skip
        app.agent(BATCHES, trainer.on_batches)
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(drained))
            tasks.create_task(worker.run(service.stop))
            training = tasks.create_task(trainer.run(service.stop))
            await app.run(service.stop)
            await training
            drained.set()  # only now: what the last handler enqueued is published too
    finally:
        await producer.close()
        pool.terminate()  # nothing is in hand, and a database that hangs must not hold us up


def main() -> int:
    """Read the settings, run, and return the exit status."""
    connections, settings, scoring = Connections.load(), TrainerSettings.load(), ScoringSettings.load()
    return asyncio.run(
        run_service(
            "trainer",
            ServiceSettings.load(),
            settings.metrics_port,
            lambda service: run(service, connections, settings, scoring),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
