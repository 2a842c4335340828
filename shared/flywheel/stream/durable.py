"""Durable agents on Faust, by the one recipe that loses nothing.

Faust on its own loses data when a handler raises or is cancelled. Here it never sees an error: values stay raw
bytes, an agent has one worker, a batch is acknowledged only after its handler returned, and what cannot be retried
or put aside ends the process, so that the uncommitted offsets bring the batch back. A batch may come twice; handlers
are idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import faust
from aiokafka.errors import KafkaError

from flywheel import metrics, tracing
from flywheel.errors import EXIT_FATAL, FatalError
from flywheel.health import Health, stalled
from flywheel.log import get_logger
from flywheel.retry import Stopped, retry_in_place
from flywheel.storage.postgres import transient
from flywheel.stream._faust import credentials, to_record
from flywheel.stream._kafka import HEARTBEAT_MS, LONGEST_BATCH_MS, PARTITION_FETCH_BYTES, SESSION_MS
from flywheel.stream.admin import ensure_topics
from flywheel.stream.age import Ages
from flywheel.stream.cluster import Cluster
from flywheel.stream.dead import DeadLetters
from flywheel.stream.handling import Handler, handle_batch
from flywheel.stream.reach import why_silent
from flywheel.stream.record import Record
from flywheel.topics import BY_NAME, Topic
from flywheel.tracing import messaging

_log = get_logger(__name__)

_COMMIT_S = 1.0
_WATCH_S = 1.0
_PROBE_TIMEOUT_S = 5.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class _Agent:
    topic: Topic
    handler: Handler
    max_batch: int
    within: float


@dataclass(frozen=True, slots=True)
class _Timer:
    interval_s: float
    callback: Callable[[], Awaitable[None]]


class DurableApp:
    """Consumes topics in the consumer group ``name``, one database transaction a batch, and runs timers beside it.

    A handler gets 1 to ``max_batch`` records. It raises TransientError (or a database error that passes by itself)
    to be called again with the same records, forever, while readiness is false; PoisonError (or a database error
    about a value) to have the batch halved down to the one bad record, which goes to the dead letters. Any other
    error ends the process with EXIT_FATAL. A group without offsets begins at the earliest record. Topics that are
    missing at the start are made with ``replication`` copies.
    """

    def __init__(
        self, name: str, kafka: Cluster | str, *, replication: int, var: Path, health: Health, dead: DeadLetters
    ) -> None:
        self._name = name
        self._kafka = Cluster.of(kafka)
        self._replication = replication
        self._datadir = var / "faust" / name
        self._health = health
        self._dead = dead
        self._agents: list[_Agent] = []
        self._timers: list[_Timer] = []
        self._stop = asyncio.Event()
        self._ages = Ages[tuple[str, int]]()
        self._measured: set[tuple[str, int]] = set()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def agent(self, topic: Topic, handler: Handler, *, max_batch: int = 500, within: float = 0.2) -> None:
        """Hand the topic's records to ``handler``, at most ``max_batch`` at once, gathered for at most ``within``
        seconds.
        """
        self._agents.append(_Agent(topic, handler, max_batch, within))

    def timer(self, interval_s: float, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` every ``interval_s`` seconds, never twice at once. Its errors are treated as a
        handler's.
        """
        self._timers.append(_Timer(interval_s, callback))

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until ``stop`` is set; return when what was in hand is done and its offsets are committed."""
        self._stop = stop
        topics = [a.topic for a in self._agents]
        topics += [BY_NAME[t.dead] for t in topics if t.dead in BY_NAME]
        await retry_in_place(
            lambda: ensure_topics(self._kafka, topics, self._replication),
            health=self._health, check="kafka", stop=stop,
        )  # fmt: skip
        self._health.ready("kafka", False, "joining the consumer group")
        app = self._build()
        try:
            await app.start()
        except Exception as error:
            self._die("Faust did not start", error)
        _log.info("consuming", group=self._name, topics=[a.topic.name for a in self._agents])
        await self._watch(app)
        self._health.ready("kafka", False, "stopping")
        await self._idle.wait()
        try:
            await asyncio.wait_for(app.stop(), _STOP_S)
        except Exception as error:  # what was handled is durable; what was not committed only comes again
            _log.warning("Faust did not stop cleanly", error=repr(error))
        _log.info("drained", group=self._name)

    def _build(self) -> faust.App:
        self._datadir.mkdir(parents=True, exist_ok=True)
        app = faust.App(
            self._name,
            broker=[f"kafka://{address}" for address in self._kafka.servers.split(",")],
            broker_credentials=credentials(self._kafka),
            datadir=str(self._datadir),
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            key_serializer="raw",
            value_serializer="raw",
            stream_wait_empty=False,
            stream_buffer_maxsize=max((a.max_batch for a in self._agents), default=1),
            stream_processing_timeout=LONGEST_BATCH_MS / 1000,
            broker_commit_interval=_COMMIT_S,
            broker_commit_livelock_soft_timeout=LONGEST_BATCH_MS / 1000,
            broker_session_timeout=SESSION_MS / 1000,
            broker_heartbeat_interval=HEARTBEAT_MS / 1000,
            broker_max_poll_interval=LONGEST_BATCH_MS / 1000,
            consumer_max_fetch_size=PARTITION_FETCH_BYTES,
            consumer_auto_offset_reset="earliest",
            logging_config=None,
        )
        for quiet in ("faust", "mode", "aiokafka"):
            logging.getLogger(quiet).setLevel(logging.WARNING)
        for agent in self._agents:
            source = app.topic(
                agent.topic.name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
            )
            app.agent(source, name=f"{self._name}.{agent.topic.name}", concurrency=1)(self._stream(agent))
        for timer in self._timers:
            app.timer(timer.interval_s)(self._tick(timer))
        return app

    def _stream(self, agent: _Agent) -> Callable[[Any], Awaitable[None]]:
        async def consume(stream: Any) -> None:
            try:
                async for events in stream.noack_take(agent.max_batch, within=agent.within):
                    if self._stop.is_set():
                        break
                    await self._handle(agent, [to_record(event.message) for event in events])
                    for event in events:
                        await stream.ack(event)
            except Stopped:
                pass
            except Exception as error:
                self._die(f"the agent of {agent.topic.name} failed", error)
            if not self._stop.is_set():
                self._die(f"the agent of {agent.topic.name} ended", None)
            await asyncio.Event().wait()  # until Faust cancels us: what returns here, it would start again

        return consume

    async def _handle(self, agent: _Agent, records: Sequence[Record]) -> None:
        started = time.monotonic()
        self._ages.handling({(r.topic, r.partition): r.timestamp_ms for r in reversed(records)})
        with self._working(), messaging.consuming(agent.topic.name, self._name, records, len(records)):
            await handle_batch(
                records, agent.handler, dead=self._dead, health=self._health, check="postgres", stop=self._stop
            )
            took, exemplar = time.monotonic() - started, tracing.exemplar()
        self._ages.durable({(r.topic, r.partition): r.timestamp_ms for r in records})
        metrics.HANDLE_SECONDS.labels(agent.topic.name).observe(took, exemplar)
        metrics.BATCH_RECORDS.labels(agent.topic.name).observe(len(records))
        metrics.BATCH_UTILISATION.labels(agent.topic.name).observe(len(records) / agent.max_batch)
        metrics.CONSUMED.labels(agent.topic.name).inc(len(records))

    def _tick(self, timer: _Timer) -> Callable[[], Awaitable[None]]:
        async def tick() -> None:
            if self._stop.is_set():
                return
            try:
                with self._working():
                    await retry_in_place(
                        timer.callback, transient=transient, health=self._health, check="postgres", stop=self._stop
                    )
            except Stopped:
                pass
            except Exception as error:
                self._die("a timer failed", error)

        return tick

    async def _watch(self, app: faust.App) -> None:
        """Until asked to stop: end the process when Faust broke inside, and keep readiness and lag current."""
        stopping = asyncio.ensure_future(self._stop.wait())
        moved, last = time.monotonic(), -1
        while not stopping.done():
            if app.crashed or app.consumer.crashed:
                self._die("Faust crashed", app.crash_reason or app.consumer.crash_reason)
            try:
                unfetched, problem = await asyncio.wait_for(self._measure_lag(app), _PROBE_TIMEOUT_S), ""
            except (KafkaError, TimeoutError) as error:
                unfetched, problem = 0, f"{type(error).__name__}: {error}"
            self._publish_ages()
            if problem:
                self._health.ready("kafka", False, problem)
                problem = await self._why_silent(stopping) or problem
            if not problem and (app.rebalancing or app.unassigned):
                problem = "no partitions assigned (yet)"
            self._health.ready("kafka", not problem, problem)
            if not problem:
                self._health.started()
            if problem or not unfetched or unfetched != last or self._busy:
                moved, last = time.monotonic(), unfetched
            elif stalled(time.monotonic(), moved):
                self._die(f"{unfetched} records wait and none has come for a while", None)
            await asyncio.wait({stopping}, timeout=_WATCH_S)

    async def _why_silent(self, stopping: asyncio.Future[Any]) -> str:
        """Ask why the broker does not answer, and end the process when it refuses us by now."""
        asking = asyncio.ensure_future(why_silent(self._kafka))
        await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            return ""
        try:
            return asking.result()
        except FatalError as error:
            self._die("the broker refuses us", error)

    async def _measure_lag(self, app: faust.App) -> int:
        """Ask the broker for the ends of our partitions; return how many records are not even fetched."""
        consumer: Any = app.consumer
        ours = consumer.assignment() if not app.rebalancing else ()
        ends = await consumer.highwaters(*ours) if ours else {}
        unfetched = 0
        behind: dict[tuple[str, int], int] = {}
        for partition, end in ends.items():
            fetched = await consumer.position(partition) or 0
            committed = consumer._committed_offset.get(partition)
            durable = fetched if committed is None else committed
            behind[partition.topic, partition.partition] = max(0, end - durable)
            unfetched += max(0, end - fetched)
        for (topic, number), records in behind.items():
            metrics.LAG_RECORDS.labels(topic, number).set(records)
        for gone in self._measured - behind.keys():  # it is another process's to tell
            metrics.LAG_RECORDS.remove(*gone)
            metrics.LAG_SECONDS.remove(*gone)
        self._measured = set(behind)
        self._ages.look(round(time.time() * 1000), behind)
        return unfetched

    def _publish_ages(self) -> None:
        for (topic, number), seconds in self._ages.seconds(round(time.time() * 1000)).items():
            metrics.LAG_SECONDS.labels(topic, number).set(seconds)

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    def _die(self, what: str, error: BaseException | None) -> NoReturn:
        """End the process at once: an error that reached Faust would lose what was not acknowledged."""
        _log.error("fatal", what=what, group=self._name, error=repr(error), exc_info=error)
        logging.shutdown()
        os._exit(EXIT_FATAL)
