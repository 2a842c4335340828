"""What the archiver does: it queues closed trajectories; when the rules say so, it decides, writes, announces a batch.

A batch is first decided (its members fixed, one transaction), then written to the store, then marked ready and
announced (one transaction). Whoever dies in between leaves it ``building``; the next cycle, or process, completes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import asyncpg

from flywheel import metrics
from flywheel.health import Health
from flywheel.log import bound, get_logger
from flywheel.messages import TrajectoryClosed
from flywheel.retry import Stopped, retry_in_place
from flywheel.settings import ArchiverSettings
from flywheel.storage.objects import ObjectStore
from flywheel.storage.postgres import transient
from flywheel.storage.traces import traced_members
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.record import Record
from flywheel.waiting import first_of
from services.archiver import store
from services.archiver.building import write
from services.archiver.readiness import unfit
from services.archiver.tracing import batch_span, lead_to_batch

_log = get_logger(__name__)

#: A cycle that takes longer, in seconds, is stuck: the largest batch is written in a fraction of it, and a store that
#: hangs runs into its own timeouts.
_LONGEST_CYCLE_S = 900.0


class Archiver:
    """The handler of closed trajectories, and the loop that makes batches of them."""

    def __init__(
        self, pool: asyncpg.Pool, objects: ObjectStore, relay: OutboxRelay, rules: ArchiverSettings, health: Health
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._relay = relay
        self._rules = rules
        self._health = health
        self._news = asyncio.Event()

    async def on_trajectories(self, records: Sequence[Record]) -> None:
        """Queue what may be trained on, as the recorder has it now; a repeated or overtaken message changes nothing.

        Raises PoisonError for a message that is none.
        """
        ids = sorted({TrajectoryClosed.parse(record.value).trajectory_id for record in records})
        async with self._pool.acquire() as conn, conn.transaction():
            closed = await store.closed_trajectories(conn, ids)
            reasons = {trajectory.trajectory_id: unfit(trajectory) for trajectory in closed}
            new, late = await store.queue(
                conn,
                [trajectory for trajectory in closed if reasons[trajectory.trajectory_id] is None],
                [trajectory for trajectory in closed if reasons[trajectory.trajectory_id] is not None],
            )
        skipped = Counter(reason for reason in reasons.values() if reason)
        skipped["unknown"] = len(ids) - len(closed)
        for reason, number in skipped.items():
            metrics.ARCHIVE_SKIPPED.labels(reason).inc(number)
        metrics.ARCHIVE_QUEUED.inc(new)
        metrics.ARCHIVE_LATE.inc(late)
        self._news.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Judge readiness on news and every ``check_interval_s`` until ``stop`` is set. Outages are waited out."""
        try:
            while not stop.is_set():
                self._news.clear()
                await retry_in_place(self.cycle, transient=transient, health=self._health, check="archive", stop=stop)
                await self._rest(stop)
        except Stopped:
            _log.info("stopped during an outage; what is decided is completed at the next start")
        finally:
            self._health.retire("archiver")

    async def cycle(self) -> None:
        """Complete what is decided, then decide and complete what is ready, until nothing is. Raises TransientError."""
        async with store.only_archiver(self._pool) as conn:
            if conn is None:
                self._health.beat("archiver", within_s=_LONGEST_CYCLE_S)
                return
            while True:
                self._health.beat("archiver", within_s=_LONGEST_CYCLE_S)
                for batch in await store.building(conn):
                    await self._complete(conn, batch)
                decisions = await store.decide_batches(conn, self._rules)
                for channel, decision in decisions.items():
                    _log.debug("judged", channel=channel, ready=decision.ready, decision=decision.words)
                if not any(decision.ready for decision in decisions.values()):
                    break
            metrics.ARCHIVE_WAITING.clear()
            for channel, groups in (await store.waiting_groups(conn)).items():
                metrics.ARCHIVE_WAITING.labels(channel).set(sum(group.waiting for group in groups))

    async def _complete(self, conn: store.Connection, batch: store.Batch) -> None:
        members = await traced_members(conn, batch.batch_id)
        with bound(batch_id=batch.batch_id, channel=batch.channel), batch_span(batch, members):
            started = time.monotonic()
            manifest, sha256 = await write(conn, self._objects, batch, self._rules.part_trajectories)
            if not await store.finish(conn, manifest, sha256):
                return
            self._relay.nudge()
            metrics.BATCHES_READY.labels(batch.channel).inc()
            metrics.BATCH_SECONDS.observe(time.monotonic() - started)
            metrics.ARCHIVED_BYTES.inc(sum(file.bytes for file in manifest.files))
            metrics.ARCHIVED_TRAJECTORIES.inc(manifest.counts.trajectories)
            _log.info("batch ready", rule=batch.rule, **manifest.counts.model_dump())
            await lead_to_batch(batch, members)

    async def _rest(self, stop: asyncio.Event) -> None:
        await first_of(stop, self._news, timeout=self._rules.check_interval_s)
