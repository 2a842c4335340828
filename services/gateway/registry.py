"""Models, deployments, agents and the summary from Postgres, read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import asyncpg

from flywheel.messages import DEFAULT_CHANNEL
from services.gateway import store
from services.gateway.cursor import Keyset
from services.gateway.filters import PageQuery
from services.gateway.store import QUERY_S, page, view
from services.gateway.views import (
    AckRow,
    AgentRow,
    BrakeRow,
    ChannelRow,
    DeploymentRow,
    Lineage,
    ModelRow,
    ModelWhole,
    Page,
    RewardRow,
    Summary,
)

_MODELS = Keyset("registered_at", "model_id", ("time", "text"), descending=True)
_DEPLOYMENTS = Keyset("deployed_at", "deployment_id", ("time", "text"), descending=True)
_ACKS = Keyset("deployment_id", "agent_id", ("text", "text"), descending=True)
_AGENTS = Keyset("channel", "agent_id", ("text", "text"))

_MODEL = """SELECT * FROM (
              SELECT m.model_id, m.channel, m.version, m.number, origin, generation, parent_version, batch_id, job_id,
                     base_model, artifact::text AS artifact, metrics::text AS metrics, evaluation::text AS evaluation,
                     trained_at, registered_at, d.model_id IS NOT NULL AS deployed,
                     substr(m.trace_context, 4, 32) AS trace_id
                FROM models m LEFT JOIN deployments d ON d.model_id = m.model_id AND d.status = 'active') AS models"""
_DEPLOYMENT = """SELECT * FROM (
              SELECT deployment_id, channel, model_id, version, number, status, share, reason, deployed_at, ended_at,
                     coalesce(loaded, 0) AS loaded, coalesce(failed, 0) AS failed
                FROM deployments LEFT JOIN (
                     SELECT deployment_id, count(*) FILTER (WHERE status = 'loaded') AS loaded,
                            count(*) FILTER (WHERE status = 'failed') AS failed
                       FROM acks GROUP BY deployment_id) AS said USING (deployment_id)) AS deployments"""
_ACK = f"SELECT {', '.join(AckRow.model_fields)} FROM acks"
_AGENT = """SELECT * FROM (
              SELECT DISTINCT ON (channel, agent_id) agent_id, channel, status, error, acked_at,
                     coalesce(running_version, CASE status WHEN 'loaded' THEN version END) AS running_version
                FROM acks ORDER BY channel, agent_id, acked_at DESC) AS agents"""
_CHANNEL = f"""SELECT d.channel, d.version, d.number, d.deployment_id, d.deployed_at, count(a.agent_id) AS agents
                 FROM deployments d
                      LEFT JOIN ({_AGENT}) AS a ON a.channel = d.channel AND a.running_version = d.version
                WHERE d.status = 'active'
                GROUP BY d.deployment_id ORDER BY d.channel"""
_PAUSED = "SELECT consumer, topic, since, reason FROM brakes WHERE released_at IS NULL ORDER BY topic, consumer"
_REWARD = f"""SELECT t.channel, t.model_version AS version, m.number, t.split, count(*) AS trajectories,
                     avg(total_reward) AS mean, stddev_samp(total_reward) AS stddev,
                     min(total_reward) AS minimum, max(total_reward) AS maximum
                FROM trajectories t
                     LEFT JOIN models m ON m.channel = coalesce(t.channel, '{DEFAULT_CHANNEL}')
                                       AND m.version = t.model_version
               WHERE revision > 0 AND total_reward IS NOT NULL AND status <> 'incomplete'
                     AND failure IS DISTINCT FROM 'infrastructure'
               GROUP BY t.channel, t.model_version, m.number, t.split
               ORDER BY t.channel NULLS FIRST, m.number NULLS FIRST, t.model_version NULLS FIRST, t.split"""


async def models(pool: asyncpg.Pool, query: PageQuery) -> Page[ModelRow]:
    """Return registered models, the newest first."""
    return await page(pool, ModelRow, _MODEL, _MODELS, query)


async def deployments(pool: asyncpg.Pool, query: PageQuery) -> Page[DeploymentRow]:
    """Return deployments, the newest first."""
    return await page(pool, DeploymentRow, _DEPLOYMENT, _DEPLOYMENTS, query)


async def acks(pool: asyncpg.Pool, query: PageQuery) -> Page[AckRow]:
    """Return what agents said, of the newest deployment first."""
    return await page(pool, AckRow, _ACK, _ACKS, query)


async def agents(pool: asyncpg.Pool, query: PageQuery) -> Page[AgentRow]:
    """Return the agents that follow a channel, and what they last said they run."""
    return await page(pool, AgentRow, _AGENT, _AGENTS, query)


async def model(pool: asyncpg.Pool, channel: str, version: str) -> ModelWhole | None:
    """Return a model with its lineage both ways, or None."""
    record = await pool.fetchrow(f"{_MODEL} WHERE channel = $1 AND version = $2", channel, version, timeout=QUERY_S)
    if record is None:
        return None
    row = view(ModelRow, record)
    deployed = await pool.fetch(
        f"{_DEPLOYMENT} WHERE model_id = $1 ORDER BY deployed_at DESC", row.model_id, timeout=QUERY_S
    )
    return ModelWhole(
        **row.model_dump(),
        lineage=await _lineage(pool, row),
        deployments=[view(DeploymentRow, one) for one in deployed],
    )


async def summary(
    pool: asyncpg.Pool, *, dead_letters: Mapping[str, int] | None, lag: Mapping[str, int] | None
) -> Summary:
    """Return the loop in figures, of one moment; what the broker says is handed in."""
    async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        played = await conn.fetch(
            """SELECT status, count(*) AS trajectories, sum(events)::bigint AS events,
                      sum(untrainable_calls)::bigint AS untrainable,
                      coalesce(sum(missing) FILTER (WHERE revision > 0), 0)::bigint AS missing
                 FROM trajectories GROUP BY status ORDER BY status""",
            timeout=QUERY_S,
        )
        batches = await conn.fetch("SELECT status, count(*) FROM batches GROUP BY status ORDER BY status")
        jobs = await conn.fetch("SELECT status, count(*) FROM training_jobs GROUP BY status ORDER BY status")
        registered = await conn.fetchval("SELECT count(*) FROM models")
        followers = await conn.fetchval("SELECT count(DISTINCT (channel, agent_id)) FROM acks", timeout=QUERY_S)
        channels = await conn.fetch(_CHANNEL, timeout=QUERY_S)
        paused = await conn.fetch(_PAUSED)
        rewards = await conn.fetch(_REWARD, timeout=QUERY_S)
    return Summary(
        generated_at=datetime.now(UTC),
        events=sum(row["events"] for row in played),
        trajectories={row["status"]: row["trajectories"] for row in played},
        untrainable_calls=sum(row["untrainable"] for row in played),
        missing_events=sum(row["missing"] for row in played),
        dead_letters=None if dead_letters is None else dict(dead_letters),
        paused=[view(BrakeRow, row) for row in paused],
        lag=None if lag is None else dict(lag),
        batches=_counts(batches),
        jobs=_counts(jobs),
        models=registered,
        agents=followers,
        channels=[view(ChannelRow, row) for row in channels],
        reward_by_version=[view(RewardRow, row) for row in rewards],
    )


async def recorded_offsets(pool: asyncpg.Pool) -> dict[str, dict[tuple[str, int], int]]:
    """Return by consumer the next offset of every (topic, partition), as written with the rows themselves."""
    reached: dict[str, dict[tuple[str, int], int]] = {}
    sql = "SELECT consumer, topic, partition, next_offset FROM stream_offsets"
    for row in await pool.fetch(sql, timeout=QUERY_S):
        reached.setdefault(row["consumer"], {})[row["topic"], row["partition"]] = row["next_offset"]
    return reached


async def _lineage(pool: asyncpg.Pool, row: ModelRow) -> Lineage:
    ancestors = await pool.fetch(
        """WITH RECURSIVE line AS (
             SELECT version, parent_version, number FROM models WHERE channel = $1 AND version = $2
             UNION ALL
             SELECT m.version, m.parent_version, m.number
               FROM models m JOIN line ON m.version = line.parent_version AND m.number < line.number
              WHERE m.channel = $1)
           SELECT version FROM line WHERE version <> $2 ORDER BY number DESC""",
        row.channel, row.version, timeout=QUERY_S,
    )  # fmt: skip
    children = await pool.fetch(
        "SELECT version FROM models WHERE channel = $1 AND parent_version = $2 ORDER BY number",
        row.channel, row.version, timeout=QUERY_S,
    )  # fmt: skip
    running = await pool.fetch(
        f"{_AGENT} WHERE channel = $1 AND running_version = $2 ORDER BY agent_id",
        row.channel, row.version, timeout=QUERY_S,
    )  # fmt: skip
    batch_id = row.batch_id
    return Lineage(
        ancestors=_column(ancestors, "version"),
        children=_column(children, "version"),
        batch=await store.batch(pool, batch_id) if batch_id else None,
        job=await store.job_of_batch(pool, batch_id) if batch_id else None,
        trajectories=await store.members(pool, batch_id) if batch_id else [],
        agents=_column(running, "agent_id"),
    )


def _column(records: Sequence[asyncpg.Record], name: str) -> list[str]:
    return [record[name] for record in records]


def _counts(records: Sequence[asyncpg.Record]) -> dict[str, int]:
    return {record["status"]: record["count"] for record in records}
