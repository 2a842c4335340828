"""What judging costs: nothing is paid twice, budgets hold, and the judge's own figures are not simply believed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.support import judge as bad
from tests.support.judge import Judge
from tests.support.scoring_bench import Bench, again, fresh

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture
async def judge() -> AsyncIterator[Judge]:
    async with Judge() as judge:
        yield judge


async def test_a_question_that_was_answered_is_never_paid_again(pool: asyncpg.Pool, judge: Judge) -> None:
    plays = fresh(0.2, 0.9, 0.5)
    first = await Bench(pool, judge, plays).score()
    asked = len(judge.asked)
    other = Bench(pool, judge, [*again(plays)][::-1])
    second = await other.score()
    assert len(judge.asked) == asked == 2
    assert second.counts == {"cached": 3, "ruler": 3}
    assert [second.values[name] for name in other.names()] == [first.values[p[0].trajectory_id] for p in plays][::-1]
    assert all(row["cached"] for row in (await other.judgments()).values())
    await Bench(pool, judge, plays).score(judge_model="judge-2")
    await Bench(pool, judge, plays).score(rubric="the longest wins")
    assert len(judge.asked) == asked + 4


async def test_what_was_answered_before_a_cut_is_not_paid_again(pool: asyncpg.Pool, judge: Judge) -> None:
    bench = Bench(pool, judge, [play for _ in range(4) for play in fresh(0.2, 0.9)])

    def then_stop(server: Judge, request: Any, asked: bad.Asked) -> Any:
        server.hold = asyncio.Event()
        return bad.fine(server, request, asked)

    judge.modes = [bad.fine, bad.fine, bad.fine, bad.fine, then_stop]
    cut = asyncio.create_task(bench.score(judge_concurrency=1, judge_passes=1, judge_timeout_s=60))
    async with asyncio.timeout(30):
        while len(judge.asked) < 3:
            await asyncio.sleep(0.01)
    cut.cancel()
    await asyncio.wait({cut})
    answered = sum(call["verdict"] is not None for call in await bench.calls())
    assert answered >= 2
    judge.modes, judge.hold = [], None
    before = len(judge.asked)
    scores = await bench.score(judge_passes=1)
    assert scores.counts["ruler"] == 8
    assert scores.counts["cached"] == 2 * answered
    assert len(judge.asked) - before == 4 - answered


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"batch_tokens": 6500}, "batch_budget"),
        ({"batch_usd": 0.0285}, "batch_budget"),
    ],
)
async def test_a_spent_budget_ends_judging_and_the_fallback_takes_over(
    pool: asyncpg.Pool, judge: Judge, limit: dict[str, float], reason: str
) -> None:
    bench = Bench(pool, judge, [play for _ in range(6) for play in fresh(0.2, 0.9)])
    scores = await bench.score(judge_concurrency=1, judge_passes=1, **limit)
    calls = await bench.calls()
    assert 1 <= len(calls) < 6
    assert scores.counts == {
        "ruler": 2 * len(calls), "recorded": 12 - 2 * len(calls), f"fallback_{reason}": 12 - 2 * len(calls)
    }  # fmt: skip
    assert sum(call["prompt_tokens"] + call["completion_tokens"] for call in calls) <= limit.get("batch_tokens", 1e9)
    assert sum(call["usd"] for call in calls) <= limit.get("batch_usd", 1e9)


async def test_the_days_budget_holds_over_batches(pool: asyncpg.Pool, judge: Judge) -> None:
    spent = await pool.fetchval("SELECT coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint FROM judge_calls")
    for expected in ("ruler", "recorded"):
        bench = Bench(pool, judge, fresh(0.2, 0.9))
        scores = await bench.score(judge_passes=1, day_tokens=spent + 3500)
        assert scores.counts[expected] == 2
    assert scores.counts["fallback_day_budget"] == 2


async def test_a_judge_that_lies_about_its_tokens_is_not_believed(pool: asyncpg.Pool, judge: Judge) -> None:
    for usage in ({"prompt_tokens": -5, "completion_tokens": "many"}, {"prompt_tokens": 10**30}, [], {}):
        judge.modes = [lambda server, request, asked, u=usage: bad.completion(
            json.dumps({"scores": bad.opinions(asked)}), usage=u or {"x": 1})]  # fmt: skip
        bench = Bench(pool, judge, fresh(0.2, 0.9))
        assert (await bench.score(judge_passes=1)).counts == {"ruler": 2}
        (call,) = await bench.calls()
        assert 100 < call["prompt_tokens"] < 5000
        assert 10 < call["completion_tokens"] < 500
