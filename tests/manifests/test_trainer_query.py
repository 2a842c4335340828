"""The question that the trainer is scaled by, asked of a real database."""

from __future__ import annotations

import re

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


async def states(conn: asyncpg.Connection) -> tuple[set[str], set[str]]:
    """Every state that a job may have, and those of them in which it has ended, as the tables have them."""
    possible = await conn.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'training_jobs_status_check'"
    )
    ended = await conn.fetchval(
        "SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = 'training_jobs_unfinished'::regclass"
    )
    assert possible is not None and ended is not None
    return set(re.findall(r"'(\w+)'", possible)), set(re.findall(r"'(\w+)'", ended))


async def test_a_batch_counts_from_ready_until_its_job_has_ended(database: str) -> None:
    (trigger,) = one(built("gpu"), "ScaledObject", "trainer")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    conn = await asyncpg.connect(database)
    try:
        assert await conn.fetchval(query) == 0
        await batch(conn, "being-written", "building", None)
        assert await conn.fetchval(query) == 0
        await batch(conn, "announced", "ready", None)
        assert await conn.fetchval(query) == 1
        possible, ended = await states(conn)
        assert {"pending", "training"} <= possible - ended and {"completed", "skipped"} <= ended < possible
        for state in possible:
            await batch(conn, state, "ready", state)
        assert await conn.fetchval(query) == 1 + len(possible - ended)
        for state in ended:
            await conn.execute("UPDATE training_jobs SET status = $1", state)
            assert await conn.fetchval(query) == 1
    finally:
        await conn.close()
