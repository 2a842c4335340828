"""The question that the trainer is scaled by, asked of a real database."""

from __future__ import annotations

import asyncpg
import pytest

from tests.manifests.conftest import built
from tests.manifests.resources import one

pytestmark = pytest.mark.stack


async def batch(conn: asyncpg.Connection, name: str, status: str, job: str | None) -> None:
    await conn.execute(
        "INSERT INTO batches (batch_id, channel, status, rule, trajectories, groups)"
        " VALUES ($1, 'default', $2, 'volume', 1, 1)", name, status,
    )  # fmt: skip
    if job is not None:
        await conn.execute(
            "INSERT INTO training_jobs (job_id, batch_id, channel, manifest, manifest_sha256, status)"
            " VALUES ($1, $1, 'default', 'm', 's', $2)", name, job,
        )  # fmt: skip


async def test_a_batch_counts_from_ready_until_its_job_has_ended(database: str) -> None:
    (trigger,) = one(built("gpu"), "ScaledObject", "trainer")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    conn = await asyncpg.connect(database)
    try:
        assert await conn.fetchval(query) == 0
        await batch(conn, "being-written", "building", None)
        assert await conn.fetchval(query) == 0
        await batch(conn, "announced", "ready", None)
        await batch(conn, "waiting", "ready", "pending")
        await batch(conn, "in-training", "ready", "training")
        for ended in ("completed", "failed", "cancelled"):
            await batch(conn, ended, "ready", ended)
        assert await conn.fetchval(query) == 3
        await conn.execute("UPDATE training_jobs SET status = 'completed'")
        assert await conn.fetchval(query) == 1
    finally:
        await conn.close()
