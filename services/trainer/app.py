"""What the trainer does: announced batches become jobs, jobs become models, one at a time.

The stream only notes jobs; training may take hours, and no consumer could be silent that long. A loop beside it takes
the oldest job under a claim, has its trajectories scored and the worker do the rest, and writes the outcome together
with its announcement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import asyncpg

from flywheel import metrics, tracing
from flywheel.errors import FatalError, PoisonError, TransientError
from flywheel.health import Health
from flywheel.log import bound, get_logger
from flywheel.messages import BatchReady
from flywheel.retry import Stopped, retry_in_place
from flywheel.scoring_settings import ScoringSettings
from flywheel.settings import TrainerSettings
from flywheel.storage.objects import ObjectStore
from flywheel.storage.postgres import transient
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.record import Record
from flywheel.tracing.messaging import context_of
from flywheel.waiting import first_of
from services.trainer import store
from services.trainer.ledger import Counts
from services.trainer.protocol import Done, Failed, Skipped, Stage, Steps
from services.trainer.scoring.batch import BatchScoring
from services.trainer.store import Claimed
from services.trainer.tracing import job_span, stage_spans, traced
from services.trainer.worker_process import WorkerDied, WorkerProcess

_log = get_logger(__name__)

#: How often a running job's progress is written, in seconds; its stages are written at once.
_PROGRESS_S = 1.0
#: Wait before a job is tried again, in seconds.
_RETRY_S = 5.0

Result = TypeVar("Result")
Answer = Done | Skipped | Failed | WorkerDied


@dataclass(slots=True)
class _Progress:
    """How far the job is, as was last heard."""

    status: str = "preparing"
    done: int = 0
    total: int = 0
    groups_scored: int = 0
    groups_total: int = 0
    in_training: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, report: Stage | Steps) -> None:
        if isinstance(report, Steps):
            self.done, self.total = report.done, report.total
        elif not (self.status == "scoring" and report.status == "preparing"):  # a job's stages never go back
            self.status = report.status
            self.news.set()

    def scored(self, groups: int, of: int) -> None:
        self.groups_scored, self.groups_total = groups, of
        if self.status != "scoring":
            self.status = "scoring"
            self.news.set()


class Trainer:
    """Batches in, models out."""

    def __init__(
        self, pool: asyncpg.Pool, store: ObjectStore, worker: WorkerProcess, relay: OutboxRelay,
        settings: TrainerSettings, scoring: ScoringSettings, health: Health,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._worker = worker
        self._relay = relay
        self._settings = settings
        self._health = health
        text_counts = settings.text_only != "quarantine"
        self._scoring = BatchScoring(pool, store, scoring, self._durably, text_counts=text_counts)
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._without_model: set[str] = set()

    async def on_batches(self, records: Sequence[Record]) -> None:
        """Note a job for each announced batch; one that has its job changes nothing. Raises PoisonError."""
        batches = [BatchReady.parse(record.value) for record in records]
        traces = {batch.batch_id: context_of(record) for batch, record in zip(batches, records, strict=True)}
        if new := await store.add_jobs(self._pool, batches, traces):
            _log.info("batches to train on", new=new)
            self._news.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Do jobs until ``stop`` is set; a job in progress is then put back. Raises FatalError."""
        self._stop = stop
        try:
            while not stop.is_set():
                self._health.beat("jobs")
                job = await self._durably(self._next) if self._worker.ready.is_set() else None
                if job is not None:
                    with bound(job_id=job.order.job_id, batch_id=job.order.batch_id), job_span(job):
                        await self._do(job)
                else:
                    await first_of(stop, self._news, timeout=self._settings.poll_s)
                    self._news.clear()
        except Stopped:
            return
        finally:
            self._health.retire("jobs")

    async def _next(self) -> Claimed | None:
        for job_id in await store.give_up(self._pool, self._settings.attempts):
            metrics.TRAINING_JOBS.labels("failed").inc()
            _log.error("job failed: its trainer vanished too often", job_id=job_id)
        waiting, without_model = await store.waiting(self._pool)
        metrics.TRAINING_WAITING.set(waiting)
        for channel in sorted(set(without_model) - self._without_model):
            _log.info("jobs wait for the channel's first model", channel=channel)
        self._without_model = set(without_model)
        job = await store.claim(
            self._pool,
            lease_s=self._settings.lease_s,
            registration_wait_s=self._settings.registration_wait_s,
        )
        if job is None:
            metrics.TRAINING_LOOKS.inc()
        return job

    async def _do(self, job: Claimed) -> None:
        _log.info("job started", attempt=job.attempt, parent_version=job.order.parent.version)
        progress = _Progress()
        keeper = asyncio.create_task(self._keep(job, progress))
        try:
            answer = await self._score_and_train(job, progress)
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})
        if not keeper.cancelled():
            keeper.result()
        if not await self._conclude(job, answer):
            metrics.TRAINING_JOBS.labels("lost").inc()
            tracing.failed("lost")
            _log.warning("the claim on the job lapsed, its outcome is dropped")

    async def _score_and_train(self, job: Claimed, progress: _Progress) -> Answer:
        order = job.order
        if self._scoring.needed(order.channel):
            scoring = asyncio.create_task(traced("score", lambda: self._scoring.score(job.order, progress.scored)))
            ends = [asyncio.create_task(event.wait()) for event in (self._stop, progress.lost)]
            try:
                await asyncio.wait({scoring, *ends}, return_when=asyncio.FIRST_COMPLETED)
                if not scoring.done():
                    return WorkerDied("scoring was interrupted")
                order = order.model_copy(update={"scores": scoring.result()})
            except PoisonError as error:
                return Failed(error="poison", reason=error.reason, message=str(error))
            except TransientError as error:
                return Failed(error="transient", reason="transient", message=str(error))
            except FatalError as error:
                return Failed(error="fatal", reason="fatal", message=str(error))
            except Stopped:
                return WorkerDied("scoring was interrupted")
            except Exception as error:  # a try that failed, as in the worker: a batch that does this ends only its job
                _log.exception("unexpected error while scoring")
                reason = type(error).__name__
                return Failed(error="unexpected", reason=reason, message=f"{reason}: {error}")
            finally:
                for task in (scoring, *ends):
                    task.cancel()
                await asyncio.wait({scoring, *ends})
        if progress.lost.is_set():
            return WorkerDied("the claim was lost")
        progress.in_training = True
        try:
            with stage_spans(progress.hear) as hear:
                return await self._worker.train(order, hear)
        except WorkerDied as died:
            return died

    async def _keep(self, job: Claimed, progress: _Progress) -> None:
        """Prolong the claim and write progress while the job runs; kill the worker when a job that it has is lost."""
        while True:
            self._health.beat("jobs")
            held = await self._durably(
                lambda: store.renew(
                    self._pool, job, lease_s=self._settings.lease_s, status=progress.status,
                    steps_done=progress.done, steps_total=progress.total,
                    groups_scored=progress.groups_scored, groups_total=progress.groups_total,
                )
            )  # fmt: skip
            if not held:
                progress.lost.set()
                if progress.in_training:
                    self._worker.abort()
                return
            progress.news.clear()
            await first_of(progress.news, timeout=min(_PROGRESS_S, self._settings.lease_s / 4))

    async def _conclude(self, job: Claimed, answer: Answer) -> bool:
        """Write what came of the job. False: it is not ours any more."""
        if isinstance(answer, Done):
            return await self._completed(job, answer)
        if isinstance(answer, Skipped):
            return await self._skipped(job, answer)
        if isinstance(answer, WorkerDied) and self._stop.is_set():
            _log.info("job put back: the trainer stops")
            return await self._durably(lambda: store.put_back(self._pool, job, counts_as_attempt=False))
        if isinstance(answer, WorkerDied):
            return await self._again_or_never(job, f"the worker process died: {answer}", {})
        if answer.error == "poison":
            return await self._failed(job, answer.message, answer.counts)
        if answer.error == "unexpected":
            return await self._again_or_never(job, answer.message, answer.counts)
        # The world is unfit, or we are: the job is not to blame, and loses no try.
        self._health.ready("training", False, answer.message)
        _log.warning("job put back", error=answer.message, wait_s=_RETRY_S)
        held = await self._durably(
            lambda: store.put_back(
                self._pool, job, error=answer.message, wait_s=_RETRY_S, counts_as_attempt=False
            )
        )  # fmt: skip
        if answer.error == "fatal":
            raise FatalError(answer.message)
        return held

    async def _completed(self, job: Claimed, done: Done) -> bool:
        if not await self._durably(lambda: store.complete(self._pool, job, done)):
            return False
        self._relay.nudge()
        self._health.ready("training", True)
        metrics.TRAINING_JOBS.labels("completed").inc()
        metrics.TRAINING_SECONDS.observe(done.metrics["seconds"])
        _count_dropped(done.counts)
        _log.info("job completed", model_id=job.order.model_id, **done.metrics)
        return True

    async def _skipped(self, job: Claimed, skipped: Skipped) -> bool:
        if not await self._durably(lambda: store.skip(self._pool, job, skipped)):
            return False
        self._health.ready("training", True)
        metrics.TRAINING_JOBS.labels("skipped").inc()
        _count_dropped(skipped.counts)
        tracing.say({"flywheel.job.skipped": skipped.reason})
        _log.info("job skipped", reason=skipped.reason, message=skipped.message, counts=skipped.counts)
        return True

    async def _again_or_never(self, job: Claimed, error: str, counts: Counts) -> bool:
        if job.attempt >= self._settings.attempts:
            return await self._failed(job, f"failed in try {job.attempt}: {error}", counts)
        tracing.failed("try_failed")
        _log.error("try failed", attempt=job.attempt, of=self._settings.attempts, error=error, retry_in_s=_RETRY_S)
        return await self._durably(
            lambda: store.put_back(self._pool, job, error=error, wait_s=_RETRY_S, counts_as_attempt=True)
        )

    async def _failed(self, job: Claimed, error: str, counts: Counts) -> bool:
        if not await self._durably(lambda: store.fail(self._pool, job, error, counts)):
            return False
        metrics.TRAINING_JOBS.labels("failed").inc()
        tracing.failed("job_failed")
        _log.error("job failed", error=error, counts=counts)
        return True

    async def _durably(self, work: Callable[[], Awaitable[Result]]) -> Result:
        return await retry_in_place(
            work, transient=transient, health=self._health, check="postgres", stop=self._stop, beat="jobs"
        )


def _count_dropped(counts: Counts) -> None:
    for kind in ("trajectories", "calls", "rows"):
        for reason, count in counts[f"{kind}_dropped"].items():
            metrics.TRAINING_DROPPED.labels(kind, reason).inc(count)
