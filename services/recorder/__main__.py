"""Runs the recorder: ``python -m services.recorder``."""

from __future__ import annotations

import asyncio
import gc
import sys

import uvloop

from flywheel.service import Service, run_service
from flywheel.settings import Connections, RecorderSettings, ServiceSettings
from flywheel.storage import postgres
from flywheel.storage.brakes import Brakes
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.events_loop import EventsLoop
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.producer import Producer
from flywheel.stream.share import DeadShare
from flywheel.topics import EVENTS, OUTCOMES
from services.recorder.app import Recorder, close_silent
from services.recorder.days import keep_making, make_ahead
from services.recorder.outcomes.app import Outcomes
from services.recorder.outcomes.store import OutcomeStore
from services.recorder.store import Store, prepare

_GROUP = "flywheel-recorder"
_OUTCOMES_GROUP = "flywheel-recorder-outcomes"
#: No event is stored while a batch of outcomes is: it is kept short.
_OUTCOMES_AT_ONCE = 200
#: Of a topic with a few records a day: the events' window would take years to fill.
_OUTCOMES_DEAD_WINDOW = 100
#: Connections: a batch of each loop, both brakes, the relay, what applies outcomes, what closes the silent, what makes
#: days ahead. So none of them ever waits for another.
_POOL = 8
#: Longest silence within a transaction, in seconds: it holds offsets and trajectories that another process may want.
_IDLE_S = 60.0


async def run(service: Service, connections: Connections, settings: RecorderSettings) -> None:
    """Wire the recorder and run it until the service is asked to stop; publish what is left, then return."""
    kafka = Cluster(connections)
    pool = await service.until_it_works(
        "postgres",
        lambda: postgres.connect(connections.postgres, init=prepare, max_size=_POOL, idle_in_transaction_s=_IDLE_S),
    )
    producer = Producer(kafka, client_id=_GROUP)
    try:
        await service.until_it_works("postgres", lambda: postgres.migrate(pool))
        await service.until_it_works("postgres", lambda: make_ahead(pool, settings.days_ahead))
        await service.until_it_works("kafka", producer.start)
        await service.until_it_works(
            "kafka", lambda: ensure_topics(kafka, replication=service.settings.topic_replication)
        )
        relay = OutboxRelay(pool, producer, service.health)
        store = Store(pool, consumer=_GROUP, topic=EVENTS.name)
        loop = EventsLoop(
            kafka, EVENTS, _GROUP, Recorder(store, relay, pool),
            dead=DeadLetters(producer, service.name),
            share=DeadShare(settings.dead_share_limit, settings.dead_window),
            brakes=Brakes(pool, consumer=_GROUP, topic=EVENTS.name),
            health=service.health, batch_records=settings.batch_events, batch_wait_ms=settings.batch_wait_ms,
        )  # fmt: skip
        apart = service.health.scoped("outcomes")
        outcomes = Outcomes(OutcomeStore(pool, consumer=_OUTCOMES_GROUP, topic=OUTCOMES.name), relay, apart)
        outcomes_loop = EventsLoop(
            kafka, OUTCOMES, _OUTCOMES_GROUP, outcomes,
            dead=DeadLetters(producer, service.name),
            share=DeadShare(settings.dead_share_limit, _OUTCOMES_DEAD_WINDOW),
            brakes=Brakes(pool, consumer=_OUTCOMES_GROUP, topic=OUTCOMES.name),
            health=apart, batch_records=_OUTCOMES_AT_ONCE, batch_wait_ms=settings.batch_wait_ms,
        )  # fmt: skip
        apart.starting()
        drained = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(drained))
            tasks.create_task(close_silent(store, relay, loop, settings, health=service.health, stop=service.stop))
            tasks.create_task(keep_making(pool, settings.days_ahead, health=service.health, stop=service.stop))
            async with asyncio.TaskGroup() as sources:
                sources.create_task(loop.run(service.stop))
                sources.create_task(outcomes_loop.run(service.stop))
                sources.create_task(outcomes.apply(service.stop))
            drained.set()  # only now: what the last batch announced is published too
    finally:
        await producer.close()
        pool.terminate()  # nothing is in hand, and a database that hangs must not hold us up


def main() -> int:
    """Read the settings, run, and return the exit status."""
    connections, settings = Connections.load(), RecorderSettings.load()
    # Events are many small objects without cycles: looking for cycles as often as by default takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    return uvloop.run(
        run_service(
            "recorder",
            ServiceSettings.load(),
            settings.metrics_port,
            lambda service: run(service, connections, settings),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
