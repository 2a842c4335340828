"""The registry in Postgres: models, deployments, acknowledgements. All SQL of the deployer is here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from flywheel import tracing
from flywheel.ids import uuid7
from flywheel.messages import Ack, Artifact, ModelTrained, ModelUpdate
from flywheel.storage.postgres import Connection
from flywheel.stream.outbox import enqueue
from flywheel.topics import MODEL_UPDATES
from services.deployer.versions import Candidate, Decision, Registered, Version, plan

#: Namespace of the advisory locks that serialise the decisions of one channel.
_CHANNEL_LOCK = 0x6465706C  # "depl"


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of an announced model. ``update`` is what the agents are told, where it was deployed."""

    decision: Decision
    update: ModelUpdate | None


async def is_registered(pool: asyncpg.Pool, model_id: str) -> bool:
    """Whether the model has its version already."""
    return await pool.fetchval("SELECT EXISTS (SELECT FROM models WHERE model_id = $1)", model_id)


async def register(pool: asyncpg.Pool, model: ModelTrained) -> Registration | None:
    """Register a model, and deploy it where the rules say so, in one transaction with the message to the agents.

    Returns None, changing nothing, for a model that is registered already. Decisions of one channel exclude each other.
    """
    async with pool.acquire() as conn, conn.transaction():
        await _lock(conn, model.channel)
        if await conn.fetchval("SELECT EXISTS (SELECT FROM models WHERE model_id = $1)", model.model_id):
            return None
        history = await _history(conn, model.channel)
        current = await _current(conn, model.channel, history)
        decision = plan(Candidate(model.origin, model.parent_version), history, current)
        await _insert_model(conn, model, decision)
        update = await _deploy(conn, model, decision) if decision.deploy else None
    return Registration(decision, update)


async def announce_active(pool: asyncpg.Pool) -> list[ModelUpdate]:
    """Tell the agents again what is deployed, one message a channel, and return the messages.

    The topic is compacted and normally has them: this heals a Kafka that lost them. Agents know a deployment by its id.
    """
    channels = [row["channel"] for row in await pool.fetch("SELECT channel FROM deployments WHERE status = 'active'")]
    announced: list[ModelUpdate] = []
    for channel in sorted(channels):
        async with pool.acquire() as conn, conn.transaction():
            await _lock(conn, channel)  # a deployment decided meanwhile must stay the last message
            row = await conn.fetchrow(
                """SELECT deployment_id, d.channel, d.version, d.number, d.share, d.deployed_at, m.trace_context,
                          m.artifact::text AS artifact
                     FROM deployments d JOIN models m USING (model_id)
                    WHERE d.channel = $1 AND d.status = 'active'""",
                channel,
            )
            if row is not None:
                update = ModelUpdate(**{**row, "artifact": Artifact.parse(row["artifact"])})
                await enqueue(conn, MODEL_UPDATES, channel, update, row["trace_context"])
                announced.append(update)
    return announced


async def record_acks(pool: asyncpg.Pool, acks: Iterable[Ack]) -> None:
    """Store what agents said of deployments; the latest word (``acked_at``) of an agent on a deployment holds."""
    latest: dict[tuple[str, str], Ack] = {}
    for ack in acks:
        known = latest.get((ack.deployment_id, ack.agent_id))
        if known is None or known.acked_at <= ack.acked_at:
            latest[ack.deployment_id, ack.agent_id] = ack
    # One order for everybody, so that two writers cannot lock each other out.
    rows = [
        (
            ack.deployment_id, ack.agent_id, ack.channel, ack.version, ack.status, ack.error, ack.running_version,
            ack.load_seconds, ack.acked_at,
        )
        for _, ack in sorted(latest.items())
    ]  # fmt: skip
    async with pool.acquire() as conn, conn.transaction():
        await conn.executemany(
            """INSERT INTO acks (deployment_id, agent_id, channel, version, status, error, running_version,
                                 load_seconds, acked_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
               ON CONFLICT (deployment_id, agent_id) DO UPDATE
                  SET (channel, version, status, error, running_version, load_seconds, acked_at)
                    = (excluded.channel, excluded.version, excluded.status, excluded.error, excluded.running_version,
                       excluded.load_seconds, excluded.acked_at)
                WHERE acks.acked_at <= excluded.acked_at""",
            rows,
        )


async def agents_by_version(pool: asyncpg.Pool) -> dict[tuple[str, str], int]:
    """Return how many agents last said that they run each (channel, version)."""
    rows = await pool.fetch(
        """SELECT channel, running, count(*) AS agents
             FROM (SELECT DISTINCT ON (channel, agent_id) channel, agent_id,
                          coalesce(running_version, CASE status WHEN 'loaded' THEN version END) AS running
                     FROM acks ORDER BY channel, agent_id, acked_at DESC) AS last
            WHERE running IS NOT NULL
            GROUP BY channel, running"""
    )
    return {(row["channel"], row["running"]): row["agents"] for row in rows}


async def _lock(conn: Connection, channel: str) -> None:
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _CHANNEL_LOCK, channel)


async def _history(conn: Connection, channel: str) -> Sequence[Registered]:
    rows = await conn.fetch("SELECT version, number, generation FROM models WHERE channel = $1", channel)
    return [Registered(Version.parse(row["version"]), row["number"], row["generation"]) for row in rows]


async def _current(conn: Connection, channel: str, history: Sequence[Registered]) -> Registered | None:
    number = await conn.fetchval("SELECT number FROM deployments WHERE channel = $1 AND status = 'active'", channel)
    return next((known for known in history if known.number == number), None)


async def _insert_model(conn: Connection, model: ModelTrained, decision: Decision) -> None:
    await conn.execute(
        """INSERT INTO models (model_id, channel, version, number, origin, generation, parent_version, batch_id, job_id,
                               base_model, artifact, metrics, evaluation, trained_at, trace_context)
           SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, m -> 'artifact', m -> 'metrics', m -> 'evaluation', $12, $13
             FROM (SELECT $11::jsonb AS m) AS message""",
        model.model_id, model.channel, str(decision.version), decision.number, model.origin, decision.generation,
        model.parent_version, model.batch_id, model.job_id, model.base_model,
        model.model_dump_json(include={"artifact", "metrics", "evaluation"}), model.trained_at,
        tracing.current(),
    )  # fmt: skip


async def _deploy(conn: Connection, model: ModelTrained, decision: Decision) -> ModelUpdate:
    await conn.execute(
        """UPDATE deployments SET status = 'superseded', ended_at = clock_timestamp()
            WHERE channel = $1 AND status = 'active'""",
        model.channel,
    )
    deployment_id = str(uuid7())
    (deployed,) = await conn.fetch(
        """INSERT INTO deployments (deployment_id, channel, model_id, version, number, status, reason)
           VALUES ($1, $2, $3, $4, $5, 'active', $6) RETURNING deployed_at""",
        deployment_id, model.channel, model.model_id, str(decision.version), decision.number, decision.reason,
    )  # fmt: skip
    update = ModelUpdate(
        deployment_id=deployment_id,
        channel=model.channel,
        version=str(decision.version),
        number=decision.number,
        artifact=model.artifact,
        deployed_at=deployed["deployed_at"],
    )
    await enqueue(conn, MODEL_UPDATES, model.channel, update)
    return update
