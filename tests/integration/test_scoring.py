"""Scoring with a judge behind real HTTP and judgments in a real Postgres: whatever the judge does, no batch is lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from flywheel import tracing
from tests.support import judge as bad
from tests.support.judge import HOPELESS, Judge
from tests.support.scoring import attempt, group_of
from tests.support.scoring_bench import Bench, again, fresh
from tests.support.tracing import text, traced
from tests.support.world import unique

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture
async def judge() -> AsyncIterator[Judge]:
    async with Judge() as judge:
        yield judge


async def test_the_judge_scores_and_everything_is_written_down(pool: asyncpg.Pool, judge: Judge) -> None:
    bench = Bench(pool, judge, fresh(0.2, 0.9, 0.5))
    scores = await bench.score()
    assert [scores.values[name] for name in bench.names()] == [0.2, 0.9, 0.5]
    assert scores.counts == {"ruler": 3}
    assert scores.about["judge_models"] == ["judge-1"] and scores.about["scorers"] == ["ruler"]
    assert bench.heard == [(0, 1), (1, 1)]
    one, other = judge.asked
    assert list(one.attempts) == list(other.attempts)[::-1] or one.attempts.keys() != other.attempts.keys()
    assert [bad.quality(t) for t in one.attempts.values()] == [bad.quality(t) for t in other.attempts.values()][::-1]
    assert one.body["response_format"]["type"] == "json_schema"

    rows = await bench.judgments()
    best = rows[bench.names()[1]]
    assert (best["score"], best["rank"], best["normalised"], best["scorer"]) == (0.9, 1, 1.0, "ruler")
    assert (best["judge_model"], best["prompt_hash"]) == ("judge-1", scores.about["prompt_hashes"][0])
    assert json.loads(best["reasoning"]) == ["so good: 0.9"] * 2
    calls = await bench.calls()
    assert sorted(best["judge_calls"]) == sorted(call["call_id"] for call in calls)
    for call in calls:
        assert (call["outcome"], call["prompt_tokens"], call["completion_tokens"]) == ("answered", 1000, 100)
        assert call["usd"] == pytest.approx(0.003)
        assert call["latency_s"] > 0


async def test_each_request_to_the_judge_is_traced_without_what_was_said(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [bad.status(503), bad.fine]
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    with traced() as spans, tracing.span("train"):
        await bench.score(judge_passes=1)
    train = spans.one("train")
    refused, answered = (span for span in spans.all() if span.name == "chat judge-1")
    assert refused.parent == answered.parent == train.context
    assert (refused.attributes or {})["flywheel.judge.outcome"] == "http_503"
    said = dict(answered.attributes or {})
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (1000, 100)
    assert (said["gen_ai.operation.name"], said["gen_ai.request.model"]) == ("chat", "judge-1")
    assert said["server.port"] == int(judge.url.rpartition(":")[2].partition("/")[0])
    assert "quality" not in answered.to_json()
    assert [asked.trace for asked in judge.asked] == [text(refused), text(answered)]


async def test_equal_attempts_are_shown_once_and_get_one_score(pool: asyncpg.Pool, judge: Judge) -> None:
    bench = Bench(pool, judge, [*(plays := fresh(0.3, 0.8)), *again(plays)])
    scores = await bench.score()
    assert [scores.values[name] for name in bench.names()] == [0.3, 0.8, 0.3, 0.8]
    assert {len(asked.attempts) for asked in judge.asked} == {2}


async def test_a_large_group_is_judged_in_parts(pool: asyncpg.Pool, judge: Judge) -> None:
    qualities = [round(number / 20, 2) for number in range(11)]
    bench = Bench(pool, judge, fresh(*qualities))
    scores = await bench.score(judge_group_size=4, judge_passes=3)
    assert [scores.values[name] for name in bench.names()] == qualities
    assert len(judge.asked) == 9
    assert {len(asked.attempts) for asked in judge.asked} == {3, 4}


async def test_what_cannot_be_compared_is_said_and_costs_nothing(pool: asyncpg.Pool, judge: Judge) -> None:
    alone, twice = fresh(0.5), fresh(0.4)
    mixed = [attempt("a", group="m", scenario="one", reward=0.1), attempt("b", group="m", scenario="two", reward=0.2)]
    blind = [attempt("x", group="u", trainable=False), attempt("y", group="u", trainable=False)]
    down = fresh(0.1, 0.2)
    down[0] = attempt("lost", group=unique("g"), status="error", failure="infrastructure")
    bench = Bench(pool, judge, [*alone, *twice, *again(twice), *mixed, *blind, *down])
    scores = await bench.score()
    assert judge.asked == []
    assert scores.counts == {
        "excluded_infrastructure_failure": 1, "fallback_mixed_scenarios": 2, "recorded": 2,
        "unscored_no_trainable_calls": 2, "unscored_nothing_to_compare": 4,
    }  # fmt: skip
    assert down[0][0].trajectory_id not in scores.values | scores.unscored
    assert len(scores.values) + len(scores.unscored) == len(bench.plays) - 1


@pytest.mark.parametrize("mode", HOPELESS)
async def test_a_hopeless_judge_costs_little_and_loses_nothing(pool: asyncpg.Pool, judge: Judge, mode: str) -> None:
    judge.modes = [HOPELESS[mode]]
    bench = Bench(pool, judge, [*fresh(0.2, 0.9, 0.5), *fresh(0.1, 0.6)])
    scores = await bench.score()
    assert [scores.values[name] for name in bench.names()] == [0.8, pytest.approx(0.1), 0.5, 0.9, 0.4]
    assert scores.counts["recorded"] == 5
    (fallback,) = [name for name in scores.counts if name.startswith("fallback_judge_")]
    assert scores.counts == {"recorded": 5, fallback: 5}
    for row in (await bench.judgments()).values():
        assert (row["scorer"], row["fallback"]) == ("recorded", fallback.removeprefix("fallback_"))
    # Two groups, two passes: at most (1 + 1 correction) x (1 + 1 retry) requests each. A form that the
    # server refuses is given up, after three there is none left.
    calls = await bench.calls()
    assert 2 <= len(calls) <= 16
    assert len(judge.asked) <= (3 * len(calls) if mode.startswith("400") else len(calls))
    assert not any(call["verdict"] for call in calls)
    assert all(call["outcome"] not in ("asked", "answered") for call in calls)


MANNERS: dict[str, bad.Mode] = {
    "code fence": bad.fenced,
    "thinking": bad.thinking,
    "order": bad.backwards,
    "no schema": bad.picky("json_schema"),
    "no format": bad.picky("response_format"),
    "no extras": bad.picky("temperature", "max_tokens", "response_format"),
}


@pytest.mark.parametrize("mode", MANNERS)
async def test_a_judge_with_manners_of_its_own_is_understood(pool: asyncpg.Pool, judge: Judge, mode: str) -> None:
    judge.modes = [MANNERS[mode]]
    bench = Bench(pool, judge, fresh(0.2, 0.9, 0.5))
    assert [(await bench.score()).values[name] for name in bench.names()] == [0.2, 0.9, 0.5]


async def test_a_correction_says_what_was_wrong(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [HOPELESS["out of range"], bad.fine]
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    scores = await bench.score(judge_passes=1)
    assert scores.counts == {"ruler": 2}
    first, second = judge.asked
    assert len(first.body["messages"]) == 2
    assert "must be from 0 to 1" in second.body["messages"][-1]["content"]
    assert [call["outcome"] for call in await bench.calls()] == ["unusable", "answered"]


async def test_a_pause_that_was_asked_for_is_kept(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [bad.status(429, {"retry-after": "1"}), bad.fine]
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    await bench.score(judge_passes=1)
    first, second = await bench.calls()
    assert (first["outcome"], first["usd"], first["prompt_tokens"]) == ("http_429", 0.0, 0)
    assert (second["asked_at"] - first["asked_at"]).total_seconds() >= 1.0


async def test_one_pass_that_fails_leaves_the_other(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [HOPELESS["prose"], HOPELESS["prose"], bad.fine]
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    scores = await bench.score(judge_concurrency=1)
    assert [scores.values[name] for name in bench.names()] == [0.2, 0.9]
    assert scores.counts == {"ruler": 2}
    for row in (await bench.judgments()).values():
        assert json.loads(row["components"])["passes"] == 1


async def test_a_judge_that_is_away_is_not_waited_for_by_every_group(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [bad.status(500)]
    bench = Bench(pool, judge, [play for _ in range(20) for play in fresh(0.2, 0.9)])
    scores = await bench.score(judge_concurrency=1)
    assert scores.counts == {"recorded": 40, "fallback_judge_down": 40}
    assert len(judge.asked) == 6  # three questions in a row, each asked twice


async def test_time_for_a_batch_ends(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [bad.never]
    bench = Bench(pool, judge, [play for _ in range(3) for play in fresh(0.2, 0.9)])
    scores = await bench.score(judge_concurrency=1, batch_timeout_s=0.2, judge_retries=0, judge_passes=1)
    assert scores.counts["recorded"] == 6
    assert scores.counts["fallback_out_of_time"] == 4
    assert len(judge.asked) == 1


async def test_without_a_fallback_the_groups_are_left_out_and_counted(pool: asyncpg.Pool, judge: Judge) -> None:
    judge.modes = [bad.status(500)]
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    scores = await bench.score(fallback="none")
    assert scores.values == {}
    assert scores.counts == {"unscored_judge_down": 2}
    assert {row["score"] for row in (await bench.judgments()).values()} == {None}


async def test_the_key_goes_to_the_judge_and_nowhere_else(pool: asyncpg.Pool, judge: Judge) -> None:
    bench = Bench(pool, judge, fresh(0.2, 0.9))
    await bench.score(judge_key="sk-secret")
    assert {asked.key for asked in judge.asked} == {"Bearer sk-secret"}
    assert "sk-secret" not in str(await bench.calls()) + str(await bench.judgments())


async def test_rules_give_each_scenario_its_scorer(pool: asyncpg.Pool, judge: Judge) -> None:
    shop, chat = fresh(0.2, 0.9), group_of([0.1, 0.7], scenario="chat", components={"tone": 2.0})
    bench = Bench(pool, judge, [*shop, *chat])
    rules = [
        {"scenario": "chat", "scorer": "weighted", "weights": {"tone": 0.5}},
        {"scenario": "shop-*", "scorer": "ruler"},
    ]
    scores = await bench.score(scorer="recorded", rules=rules)
    assert [scores.values[name] for name in bench.names()] == [0.2, 0.9, 1.0, 1.0]
    assert scores.counts == {"ruler": 2, "weighted": 2}
    assert scores.about["scorers"] == ["ruler", "weighted"]
