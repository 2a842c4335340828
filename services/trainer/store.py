"""Training jobs in Postgres. All SQL of the trainer is here.

A job is worked on under a *claim*: a fresh token with an end, renewed while the work goes on. Every write of a worker
names its claim, so that one that was thought dead and comes back changes nothing. Time is the database's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg

from flywheel.ids import uuid7
from flywheel.messages import Artifact, BatchReady, ModelTrained
from flywheel.storage.postgres import Connection
from flywheel.stream.outbox import enqueue
from flywheel.topics import MODELS
from services.trainer.baseline import store as baseline
from services.trainer.calls import Policy
from services.trainer.protocol import Done, Order, Parent, Skipped

#: One decision at a time about who takes which job.
_CLAIM_LOCK = 0x7472616E  # "tran"

_UNFINISHED = "('pending', 'preparing', 'scoring', 'training', 'evaluating', 'uploading')"
_RUNNING = "('preparing', 'scoring', 'training', 'evaluating', 'uploading')"
#: Jobs that nobody works on: waiting ones, and those whose claim lapsed.
_FREE = f"""(j.status = 'pending' AND coalesce(j.not_before <= clock_timestamp(), true)
             OR j.status IN {_RUNNING} AND j.claim_until < clock_timestamp())"""
_NO_TRACES: Mapping[str, str | None] = {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is ours until the claim lapses."""

    claim: str
    attempt: int
    order: Order
    trace_context: str | None = None
    """Where the batch's trace goes on."""


async def add_jobs(
    pool: asyncpg.Pool, batches: Sequence[BatchReady], traces: Mapping[str, str | None] = _NO_TRACES
) -> int:
    """Note a pending job for each batch that has none yet, in one transaction; return how many were new. ``traces`` are
    the contexts of announcements, by batch.
    """
    rows = await pool.fetch(
        """INSERT INTO training_jobs (job_id, batch_id, channel, manifest, manifest_sha256, trace_context, status)
           SELECT *, 'pending' FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
               ON CONFLICT (batch_id) DO NOTHING RETURNING job_id""",
        [str(uuid7()) for _ in batches],
        [batch.batch_id for batch in batches],
        [batch.channel for batch in batches],
        [batch.manifest for batch in batches],
        [batch.manifest_sha256 for batch in batches],
        [traces.get(batch.batch_id) for batch in batches],
    )
    return len(rows)


async def claim(pool: asyncpg.Pool, *, lease_s: float, registration_wait_s: float) -> Claimed | None:
    """Take the oldest job that can start now, with its order; None when there is none.

    A channel's jobs follow each other: each starts from the model that is deployed when it starts. So a job
    waits while another of its channel is worked on, and (up to ``registration_wait_s``) while the last
    trained model has not reached the registry. A channel without a deployed model waits too.
    """
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _CLAIM_LOCK)
        job = await conn.fetchrow(
            f"""SELECT j.job_id, j.batch_id, j.channel, j.manifest, j.manifest_sha256, j.trace_context, m.version,
                       m.number, m.base_model, m.artifact::text AS artifact
                  FROM training_jobs j
                  JOIN deployments d ON d.channel = j.channel AND d.status = 'active'
                  JOIN models m ON m.model_id = d.model_id
                 WHERE {_FREE}
                   AND NOT EXISTS (SELECT FROM training_jobs o
                                    WHERE o.channel = j.channel AND o.status IN {_RUNNING}
                                      AND o.claim_until >= clock_timestamp())
                   AND NOT EXISTS (SELECT FROM training_jobs o
                                    WHERE o.channel = j.channel AND o.status = 'completed'
                                      AND o.finished_at > clock_timestamp() - $1::interval
                                      AND NOT EXISTS (SELECT FROM models WHERE model_id = o.model_id))
                 ORDER BY j.created_at, j.job_id LIMIT 1""",
            timedelta(seconds=registration_wait_s),
        )
        if job is None:
            return None
        policies = await _policies(conn, job["channel"])
        baselines = await baseline.pinned(conn, job["job_id"], job["channel"])
        token = str(uuid7())
        taken = await conn.fetchrow(
            """UPDATE training_jobs
                  SET status = 'preparing', claim = $2, claim_until = clock_timestamp() + $3::interval,
                      attempt = attempt + 1, parent_version = $4, steps_done = 0, steps_total = 0, groups_scored = 0,
                      groups_total = 0, not_before = NULL,
                      started_at = coalesce(started_at, clock_timestamp()), updated_at = clock_timestamp()
                WHERE job_id = $1 RETURNING attempt, started_at""",
            job["job_id"], token, timedelta(seconds=lease_s), job["version"],
        )  # fmt: skip
    assert taken is not None, "the job was found in this transaction"
    parent = Parent(
        version=job["version"],
        policy=policies[job["version"]],
        artifact=Artifact.parse(job["artifact"]),
        base_model=job["base_model"],
    )
    order = Order(
        job_id=job["job_id"], batch_id=job["batch_id"], channel=job["channel"], manifest=job["manifest"],
        manifest_sha256=job["manifest_sha256"], model_id=str(uuid7()), parent=parent, policies=policies,
        started_at=taken["started_at"], baselines=baselines,
    )  # fmt: skip
    return Claimed(token, taken["attempt"], order, job["trace_context"])


async def renew(
    pool: asyncpg.Pool, job: Claimed, *, lease_s: float, status: str, steps_done: int, steps_total: int,
    groups_scored: int, groups_total: int,
) -> bool:  # fmt: skip
    """Prolong the claim and write how far the job is. False: the claim is not ours any more, stop working on it."""
    return await _write(
        pool, job,
        "status = $3, steps_done = $4, steps_total = $5, groups_scored = $6, groups_total = $7, "
        "claim_until = clock_timestamp() + $8::interval",
        status, steps_done, steps_total, groups_scored, groups_total, timedelta(seconds=lease_s),
    )  # fmt: skip


async def complete(pool: asyncpg.Pool, job: Claimed, done: Done) -> bool:
    """Complete the job and announce its model, in one transaction. False: the claim is not ours any more."""
    order = job.order
    message = ModelTrained(
        model_id=order.model_id,
        channel=order.channel,
        artifact=done.artifact,
        origin="trained",
        parent_version=order.parent.version,
        batch_id=order.batch_id,
        job_id=order.job_id,
        base_model=order.parent.base_model,
        metrics=done.metrics,
    )
    async with pool.acquire() as conn, conn.transaction():
        if not await _write(
            conn, job,
            "status = 'completed', model_id = $3, counts = $4::jsonb, metrics = $5::jsonb, steps_done = $6, "
            "steps_total = $6, error = NULL, claim = NULL, claim_until = NULL, finished_at = clock_timestamp()",
            order.model_id, json.dumps(done.counts), json.dumps(done.metrics), done.metrics["steps"],
        ):  # fmt: skip
            return False
        await baseline.learn(conn, order.job_id, order.channel, done.told)
        await enqueue(conn, MODELS, order.model_id, message)
    return True


async def skip(pool: asyncpg.Pool, job: Claimed, skipped: Skipped) -> bool:
    """End the job without a model and without failure, in one transaction with what its rewards tell the baselines: a
    channel of singletons would else never have any. False: the claim is not ours any more.
    """
    async with pool.acquire() as conn, conn.transaction():
        if not await _write(
            conn, job,
            "status = 'skipped', reason = $3, error = $4, counts = $5::jsonb, claim = NULL, claim_until = NULL, "
            "finished_at = clock_timestamp()",
            skipped.reason, skipped.message, json.dumps(skipped.counts),
        ):  # fmt: skip
            return False
        await baseline.learn(conn, job.order.job_id, job.order.channel, skipped.told)
    return True


async def fail(pool: asyncpg.Pool, job: Claimed, error: str, counts: Mapping[str, Any]) -> bool:
    """Fail the job for good. False: the claim is not ours any more."""
    return await _write(
        pool, job,
        "status = 'failed', error = $3, counts = $4::jsonb, claim = NULL, claim_until = NULL, "
        "finished_at = clock_timestamp()",
        error, json.dumps(counts),
    )  # fmt: skip


async def put_back(
    pool: asyncpg.Pool, job: Claimed, *, error: str | None = None, wait_s: float = 0.0, counts_as_attempt: bool
) -> bool:
    """Make the job pending again, to be taken up after ``wait_s``. False: the claim is not ours any more."""
    return await _write(
        pool, job,
        "status = 'pending', error = coalesce($3, error), not_before = clock_timestamp() + $4::interval, "
        "attempt = attempt - $5, claim = NULL, claim_until = NULL",
        error, timedelta(seconds=wait_s), 0 if counts_as_attempt else 1,
    )  # fmt: skip


async def give_up(pool: asyncpg.Pool, attempts: int) -> list[str]:
    """Fail the jobs whose worker vanished and that have no try left; return their ids."""
    rows = await pool.fetch(
        f"""UPDATE training_jobs j
               SET status = 'failed', claim = NULL, claim_until = NULL, updated_at = clock_timestamp(),
                   finished_at = clock_timestamp(),
                   error = 'the trainer vanished in try ' || attempt || coalesce('; before that: ' || error, '')
             WHERE status IN {_RUNNING} AND claim_until < clock_timestamp() AND attempt >= $1
         RETURNING job_id""",
        attempts,
    )
    return [row["job_id"] for row in rows]


async def waiting(pool: asyncpg.Pool) -> tuple[int, list[str]]:
    """Return how many jobs are unfinished, and the channels among theirs that have no deployed model."""
    rows = await pool.fetch(
        f"""SELECT channel, count(*) AS jobs,
                   EXISTS (SELECT FROM deployments d WHERE d.channel = j.channel AND d.status = 'active') AS deployed
              FROM training_jobs j WHERE status IN {_UNFINISHED} GROUP BY channel ORDER BY channel"""
    )
    return sum(row["jobs"] for row in rows), [row["channel"] for row in rows if not row["deployed"]]


async def _policies(conn: Connection, channel: str) -> dict[str, Policy]:
    """Return every version of the channel; its first figure names the import that the weights come from."""
    rows = await conn.fetch("SELECT version, number FROM models WHERE channel = $1", channel)
    return {row["version"]: Policy(row["number"], int(row["version"].partition(".")[0])) for row in rows}


async def _write(where: asyncpg.Pool | Connection | Any, job: Claimed, columns: str, *values: Any) -> bool:
    """Set ``columns`` ($3, $4 …) of the job if the claim still holds."""
    found = await where.fetchval(
        f"UPDATE training_jobs SET updated_at = clock_timestamp(), {columns} "
        "WHERE job_id = $1 AND claim = $2 RETURNING job_id",
        job.order.job_id, job.claim, *values,
    )  # fmt: skip
    return found is not None
