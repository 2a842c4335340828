"""Scores from what was recorded: nothing that is missing counts as 0, and rules choose who scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from flywheel.scoring_settings import ScoringRule, ScoringSettings
from services.trainer.scoring.choose import only_recorded, rule_for
from services.trainer.scoring.heuristic import Heuristic
from services.trainer.scoring.port import (
    Group,
    GroupScores,
    JudgeFailed,
    JudgeFailure,
    Scorer,
    Unscored,
    WithFallback,
)
from services.trainer.scoring.rewards import Recorded, Weighted
from tests.support.scoring import trajectory


async def only(scorer: Scorer, **fields: Any) -> float | str:
    """The one trajectory's score, or why it has none."""
    found = await scorer.score(Group("g", [trajectory("hello", trajectory_id="t", **fields)]))
    assert found.scores.keys() | found.unscored.keys() == {"t"}
    return found.scores["t"].value if found.scores else found.unscored["t"]


async def test_the_recorded_reward_is_the_score_and_none_is_none() -> None:
    assert await only(Recorded(), reward=0.25) == 0.25
    assert await only(Recorded(), reward=0.0) == 0.0
    assert await only(Recorded(), reward=None) == Unscored.NO_REWARD


async def test_weights_add_components_and_the_total() -> None:
    scorer = Weighted({"profit": 2.0, "risk": -1.0, "total_reward": 0.5})
    assert await only(scorer, reward=1.0, components={"profit": 3.0, "risk": 1.0, "fun": 9.0}) == 5.5
    assert await only(scorer, reward=1.0, components={"profit": 3.0}) == Unscored.MISSING_COMPONENT
    assert await only(scorer, reward=None, components={"profit": 3.0, "risk": 1.0}) == Unscored.MISSING_COMPONENT


@pytest.mark.parametrize("weight", [1.0, -1.0, 2.0, 0.5])
async def test_a_sum_that_no_number_holds_is_no_score(weight: float) -> None:
    huge = {"profit": 1.5e308, "risk": 1.5e308}
    found = await only(Weighted({"profit": 2.0, "risk": 2.0 * weight}), components=huge)
    assert found == Unscored.NOT_FINITE
    assert await only(Weighted({"profit": 1.0, "risk": 1.0}), components=huge) == Unscored.NOT_FINITE
    assert await only(Weighted({"profit": 1.0, "risk": -1.0}), components=huge) == 0.0


@pytest.mark.parametrize(
    ("fields", "score"),
    [
        ({"final_pnl": 500.0, "reward": 0.5}, 0.4 * math.tanh(1) + 0.3 + 0.2 + 0.05),
        ({"final_pnl": -500.0, "reward": -7.0, "success": False}, -0.4 * math.tanh(1) - 0.3 + 0.2 - 0.1),
        ({"reward": 0.5, "status": "timeout"}, (0.3 - 0.1 + 0.05) / 0.6),
        ({"reward": None, "success": None, "final_pnl": 0.0}, 0.2 / 0.6),
    ],
)
async def test_the_heuristic_is_the_weighted_mean_of_what_is_known(fields: dict[str, Any], score: float) -> None:
    assert await only(Heuristic(500.0), **fields) == pytest.approx(score)


async def test_how_it_ended_alone_is_no_ground_for_a_score() -> None:
    assert await only(Heuristic(500.0), reward=None, success=None) == Unscored.NOTHING_TO_GO_BY


class Broken:
    name = "ruler"

    async def score(self, group: Group) -> GroupScores:
        raise JudgeFailed(JudgeFailure.DOWN, "gone")


async def test_the_fallback_scores_the_whole_group_and_says_why() -> None:
    group = Group("g", [trajectory("a", reward=1.0), trajectory("b", reward=None)])
    found = await WithFallback(Broken(), Recorded()).score(group)
    (score,) = found.scores.values()
    assert (score.value, score.scorer, score.fallback) == (1.0, "recorded", JudgeFailure.DOWN)
    assert list(found.unscored.values()) == [Unscored.NO_REWARD]


async def test_without_a_fallback_nobody_gets_a_score() -> None:
    group = Group("g", [trajectory("a", reward=1.0), trajectory("b", reward=2.0)])
    found = await WithFallback(Broken(), None).score(group)
    assert not found.scores
    assert set(found.unscored.values()) == {"judge_down"}
    assert len(found.unscored) == 2


def test_the_first_rule_that_matches_holds() -> None:
    settings = ScoringSettings(
        judge_url="http://judge/v1",
        judge_model="j",
        weights={"profit": 1.0},
        rubric="be fair",
        rules=[
            ScoringRule(channel="prod", scenario="shop-*", scorer="ruler", rubric="be kind"),
            ScoringRule(channel="prod", scorer="weighted", weights={"risk": -1.0}),
            ScoringRule(channel="prod", scenario="shop-*", scorer="heuristic"),
        ],
    )
    shop = rule_for(settings, "prod", "shop-lamp")
    assert (shop.scorer, shop.rubric, shop.weights) == ("ruler", "be kind", {"profit": 1.0})
    chat = rule_for(settings, "prod", "chat")
    assert (chat.scorer, chat.weights, chat.rubric) == ("weighted", {"risk": -1.0}, "be fair")
    assert rule_for(settings, "prod", None).scorer == "weighted"
    assert rule_for(settings, "test", "shop-lamp").scorer == "recorded"
    assert only_recorded(settings, "test")
    assert not only_recorded(settings, "prod")


def test_by_default_the_recorded_reward_scores_everything() -> None:
    assert only_recorded(ScoringSettings(), "any")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scorer": "ruler"}, "judge_url"),
        ({"rules": [{"scorer": "ruler"}], "judge_url": "http://x/v1"}, "judge_model"),
        ({"scorer": "weighted"}, "weights"),
        ({"rules": [{"scorer": "weighted"}]}, "weights"),
        ({"fallback": "weighted"}, "weights"),
        ({"day_usd": 5.0}, "price"),
        ({"rules": [{"scorer": "recorded", "chanel": "x"}]}, "chanel"),
        ({"judge_answer_tokens": 20_000}, "judge_context_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ScoringSettings.model_validate(wrong)


def test_rules_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_SCORING_RULES", '[{"scenario": "shop-*", "scorer": "weighted"}]')
    monkeypatch.setenv("FLYWHEEL_SCORING_WEIGHTS", '{"profit": 1}')
    (rule,) = ScoringSettings.load().rules
    assert (rule.scenario, rule.channel, rule.scorer) == ("shop-*", "*", "weighted")
