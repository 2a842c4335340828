"""A process with one durable agent, for tests: stores numbers in Postgres, with a failure now and then.

``python -m tests.support.durable_worker TOPIC``: values are whole numbers; ``poison`` can never be handled; the
first times a batch holds ``flaky`` the handler fails as if the database were away; ``bug`` is an error that nobody
expected.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from flywheel.errors import PoisonError, TransientError
from flywheel.service import Service, run_service
from flywheel.settings import Connections, ServiceSettings
from flywheel.storage.postgres import connect
from flywheel.stream.dead import DeadLetters
from flywheel.stream.durable import DurableApp
from flywheel.stream.producer import Producer
from flywheel.stream.record import Record
from flywheel.topics import Topic

FAILURES = 3
TABLE = """
CREATE TABLE IF NOT EXISTS handled (partition integer, "offset" bigint, value text, times integer NOT NULL DEFAULT 1,
                                    PRIMARY KEY (partition, "offset"))
"""


async def main(service: Service, topic: Topic, connections: Connections) -> None:
    """Handle the topic until asked to stop."""
    pool = await connect(connections.postgres)
    await pool.execute(TABLE)
    producer = Producer(connections.kafka)
    await producer.start()
    failed = 0

    async def handle(records: Sequence[Record]) -> None:
        nonlocal failed
        values = [(record.value or b"").decode() for record in records]
        if "bug" in values:
            raise KeyError("a bug")
        if "poison" in values:
            raise PoisonError("poison", "a test says so")
        async with pool.acquire() as conn, conn.transaction():
            await conn.executemany(
                'INSERT INTO handled (partition, "offset", value) VALUES ($1, $2, $3)'
                ' ON CONFLICT (partition, "offset") DO UPDATE SET times = handled.times + 1',
                [(r.partition, r.offset, value) for r, value in zip(records, values, strict=True)],
            )
            if "flaky" in values and failed < FAILURES:
                failed += 1
                raise TransientError("as if the database were away")
            await asyncio.sleep(0.05)

    async def tick() -> None:
        await pool.execute(
            "INSERT INTO handled (partition, \"offset\", value) VALUES (-1, 0, 'tick')"
            ' ON CONFLICT (partition, "offset") DO UPDATE SET times = handled.times + 1'
        )

    dead = DeadLetters(producer, service.name)
    app = DurableApp(
        f"test-{topic.name}",
        connections.kafka,
        replication=service.settings.topic_replication,
        var=service.settings.var,
        health=service.health,
        dead=dead,
    )
    app.agent(topic, handle, max_batch=50, within=0.05)
    app.timer(0.2, tick)
    await app.run(service.stop)
    await producer.stop()
    await pool.close()


def start() -> int:
    """Run until SIGTERM; return the exit status."""
    topic = Topic(sys.argv[1], "any", "numbers", 3)
    connections = Connections.load()
    return asyncio.run(run_service("worker", ServiceSettings.load(), None, lambda s: main(s, topic, connections)))


if __name__ == "__main__":
    sys.exit(start())
