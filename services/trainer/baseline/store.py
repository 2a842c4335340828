"""Baselines in Postgres: read when a job is first taken up, brought up to date when it ends."""

from __future__ import annotations

from pydantic import TypeAdapter

from flywheel.storage.postgres import Connection
from services.trainer.baseline.estimate import Baseline, Told

#: Most baselines that a channel has, those that were told something last: scenarios may be as many as trajectories.
_MOST = 10_000

_baselines: TypeAdapter[dict[str, dict[str, Baseline]]] = TypeAdapter(dict[str, dict[str, Baseline]])


async def pinned(conn: Connection, job_id: str, channel: str) -> dict[str, dict[str, Baseline]]:
    """Return the channel's baselines as they were when the job was first taken up, and keep them with the job."""
    kept = await conn.fetchval("SELECT baselines::text FROM training_jobs WHERE job_id = $1", job_id)
    if kept is not None:
        return _baselines.validate_json(kept)
    rows = await conn.fetch(
        """SELECT scorer, scenario, weight, weight_sq, mean, m2 FROM reward_baselines
            WHERE channel = $1 ORDER BY updated_at DESC, scorer, scenario LIMIT $2""",
        channel, _MOST,
    )  # fmt: skip
    found: dict[str, dict[str, Baseline]] = {}
    for row in rows:
        known = Baseline(weight=row["weight"], weight_sq=row["weight_sq"], mean=row["mean"], m2=row["m2"])
        found.setdefault(row["scorer"], {})[row["scenario"]] = known
    await conn.execute(
        "UPDATE training_jobs SET baselines = $2::jsonb WHERE job_id = $1",
        job_id, _baselines.dump_json(found).decode(),
    )  # fmt: skip
    return found


async def learn(conn: Connection, job_id: str, channel: str, told: Told) -> None:
    """Take in what a job observed, in the transaction that ends it. What was pinned for it is no longer needed."""
    await conn.execute("UPDATE training_jobs SET baselines = NULL WHERE job_id = $1", job_id)
    # A job whose claim lapsed may end beside the next of its channel: they take turns.
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('reward_baselines ' || $1, 0))", channel)
    for scorer, scenarios in told.observed.items():
        rows = await conn.fetch(
            """SELECT scenario, weight, weight_sq, mean, m2 FROM reward_baselines
                WHERE channel = $1 AND scorer = $2 AND scenario = ANY($3)""",
            channel, scorer, list(scenarios),
        )  # fmt: skip
        before = {row["scenario"]: Baseline(**{name: row[name] for name in Baseline.model_fields}) for row in rows}
        after = [before.get(name, Baseline()).after(seen, told.decay) for name, seen in scenarios.items()]
        await conn.execute(
            """INSERT INTO reward_baselines (channel, scorer, scenario, weight, weight_sq, mean, m2, job_id)
               SELECT $1, $2, scenario, weight, weight_sq, mean, m2, $3
                 FROM unnest($4::text[], $5::float8[], $6::float8[], $7::float8[], $8::float8[])
                      AS told (scenario, weight, weight_sq, mean, m2)
                   ON CONFLICT (channel, scorer, scenario) DO UPDATE
                  SET weight = excluded.weight, weight_sq = excluded.weight_sq, mean = excluded.mean, m2 = excluded.m2,
                      job_id = excluded.job_id, updated_at = clock_timestamp()""",
            channel, scorer, job_id, list(scenarios), [each.weight for each in after],
            [each.weight_sq for each in after], [each.mean for each in after], [each.m2 for each in after],
        )  # fmt: skip
    await conn.execute(
        """DELETE FROM reward_baselines
            WHERE channel = $1
              AND updated_at <= (SELECT updated_at FROM reward_baselines
                                  WHERE channel = $1 ORDER BY updated_at DESC OFFSET $2 LIMIT 1)""",
        channel, _MOST,
    )  # fmt: skip
