"""Judge calls, their cost and what came of them in Postgres. All SQL of scoring is here; time is the database's clock.

A call is noted, with what it may cost at most, before it is sent: a crash can only make us believe that more was spent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from flywheel.ids import uuid7
from flywheel.scoring_settings import ScoringSettings
from services.trainer.scoring.port import JudgeFailed, JudgeFailure, Score
from services.trainer.scoring.prompt import Question
from services.trainer.scoring.verdict import Opinion

#: One decision at a time about who may still spend.
_BUDGET_LOCK = 0x6A756467  # "judg"


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens of one request and its answer, and what they cost."""

    prompt_tokens: int
    completion_tokens: int
    usd: float


class JudgeCalls:
    """The judge calls of one batch, under its budget and the day's."""

    def __init__(self, pool: asyncpg.Pool, batch_id: str, settings: ScoringSettings) -> None:
        self._pool = pool
        self._batch_id = batch_id
        self._settings = settings

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        """Return the cost by the prices set."""
        dollars = prompt_tokens * self._settings.price_prompt + completion_tokens * self._settings.price_completion
        return Cost(prompt_tokens, completion_tokens, dollars / 1e6)

    async def recall(self, question: Question) -> tuple[str, dict[str, Opinion]] | None:
        """Return the call that answered this very question before, by the same judge, and what it said by content
        key.
        """
        row = await self._pool.fetchrow(
            """SELECT call_id, verdict::text FROM judge_calls
                WHERE prompt_hash = $1 AND judge_model = $2 AND content_hash = $3 AND verdict IS NOT NULL
                ORDER BY asked_at, call_id LIMIT 1""",
            question.prompt_hash, self._settings.judge_model, question.content_hash,
        )  # fmt: skip
        if row is None:
            return None
        return row["call_id"], {key: Opinion(*opinion) for key, opinion in json.loads(row["verdict"]).items()}

    async def reserve(self, question: Question, most: Cost) -> str:
        """Note a call that is about to be made and costs ``most``; return its id.

        Raises JudgeFailed when it could exceed the budget of the batch or of the day.
        """
        call_id = str(uuid7())
        async with self._pool.acquire() as conn, conn.transaction():
            await conn.execute("SELECT pg_advisory_xact_lock($1)", _BUDGET_LOCK)
            spent = await conn.fetchrow(
                """SELECT coalesce(sum(tokens) FILTER (WHERE mine), 0)::bigint AS batch_tokens,
                          coalesce(sum(usd) FILTER (WHERE mine), 0) AS batch_usd,
                          coalesce(sum(tokens) FILTER (WHERE today), 0)::bigint AS day_tokens,
                          coalesce(sum(usd) FILTER (WHERE today), 0) AS day_usd
                     FROM (SELECT prompt_tokens + completion_tokens AS tokens, usd, batch_id = $1 AS mine,
                                  asked_at >= date_trunc('day', clock_timestamp(), 'UTC') AS today
                             FROM judge_calls
                            WHERE batch_id = $1
                               OR asked_at >= date_trunc('day', clock_timestamp(), 'UTC')) AS calls""",
                self._batch_id,
            )
            assert spent is not None, "an aggregate gives a row"
            self._check(spent, most)
            await conn.execute(
                """INSERT INTO judge_calls (call_id, batch_id, judge_model, prompt_hash, content_hash, prompt_tokens,
                                            completion_tokens, usd)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
                call_id, self._batch_id, self._settings.judge_model, question.prompt_hash, question.content_hash,
                most.prompt_tokens, most.completion_tokens, most.usd,
            )  # fmt: skip
        return call_id

    def _check(self, spent: asyncpg.Record, most: Cost) -> None:
        limits = self._settings
        tokens = most.prompt_tokens + most.completion_tokens
        for reason, name, limit, more in (
            (JudgeFailure.BATCH_BUDGET, "batch_tokens", limits.batch_tokens, tokens),
            (JudgeFailure.BATCH_BUDGET, "batch_usd", limits.batch_usd, most.usd),
            (JudgeFailure.DAY_BUDGET, "day_tokens", limits.day_tokens, tokens),
            (JudgeFailure.DAY_BUDGET, "day_usd", limits.day_usd, most.usd),
        ):
            if limit is not None and spent[name] + more > limit:
                raise JudgeFailed(reason, f"{name}: {spent[name]:g} of {limit:g} spent, this call may take {more:g}")

    async def settle(
        self,
        call_id: str,
        outcome: str,
        *,
        cost: Cost | None,
        latency_s: float,
        detail: str | None = None,
        verdict: Mapping[str, Opinion] | None = None,
    ) -> None:
        """Note what came of a call. ``cost`` None: unknown, what was reserved stays."""
        said = {key: (opinion.score, opinion.explanation) for key, opinion in verdict.items()} if verdict else None
        await self._pool.execute(
            """UPDATE judge_calls
                  SET outcome = $2, detail = $3, latency_s = $4, verdict = $5::jsonb,
                      prompt_tokens = coalesce($6, prompt_tokens), completion_tokens = coalesce($7, completion_tokens),
                      usd = coalesce($8, usd)
                WHERE call_id = $1""",
            call_id, outcome, detail, latency_s, None if said is None else json.dumps(said),
            cost and cost.prompt_tokens, cost and cost.completion_tokens, cost and cost.usd,
        )  # fmt: skip


async def write_judgments(
    pool: asyncpg.Pool,
    batch_id: str,
    group_id: str,
    scores: Mapping[str, Score],
    unscored: Mapping[str, str],
    scorer: str,
    fallback: str | None,
) -> None:
    """Write what was found of one group, in one transaction, replacing what an earlier try found."""
    rows: Sequence[tuple[object, ...]] = [
        *(_judgment(batch_id, group_id, name, score) for name, score in sorted(scores.items())),
        *(
            (batch_id, name, group_id, scorer, None, reason, "{}", fallback, *(None,) * 5, "[]", [], False)
            for name, reason in sorted(unscored.items())
        ),
    ]
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(
            "DELETE FROM judgments WHERE batch_id = $1 AND trajectory_id = ANY($2)", batch_id, [row[1] for row in rows]
        )
        await conn.executemany(
            """INSERT INTO judgments (batch_id, trajectory_id, group_id, scorer, score, unscored, components, fallback,
                                      judge_model, prompt_hash, content_key, rank, normalised, reasoning, judge_calls,
                                      cached)
               VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11, $12, $13, $14::jsonb, $15, $16)""",
            rows,
        )


def _judgment(batch_id: str, group_id: str, trajectory_id: str, score: Score) -> tuple[object, ...]:
    judged = score.judged
    told = (
        (judged.model, judged.prompt_hash, judged.content_key, judged.rank, judged.normalised)
        if judged
        else (None,) * 5
    )
    return (
        batch_id, trajectory_id, group_id, score.scorer, score.value, None, json.dumps(dict(score.components)),
        score.fallback, *told, json.dumps(judged.reasoning if judged else ()), list(judged.calls) if judged else [],
        judged.cached if judged else False,
    )  # fmt: skip
