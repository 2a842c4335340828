"""The running baseline: the weighted mean and variance that it says, bounded advantages, what it is told."""

from __future__ import annotations

import math
from statistics import fmean, stdev, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.advantages import Scored, group_advantages, held_against, observed
from services.trainer.baseline.estimate import EPSILON, Baseline, Observed

REWARDS = st.floats(-1e3, 1e3).map(lambda x: round(x, 4))
BATCHES = st.lists(st.lists(REWARDS, min_size=1, max_size=9), min_size=1, max_size=7)


def told(batches: list[list[float]], decay: float) -> Baseline:
    known = Baseline()
    for batch in batches:
        known = known.after(Observed.of(batch), decay)
    return known


@given(BATCHES, st.floats(0.05, 1))
def test_it_is_the_mean_and_the_unbiased_variance_of_the_weighted_rewards(
    batches: list[list[float]], decay: float
) -> None:
    """Against the definition, over all rewards at once."""
    known = told(batches, decay)
    weighted = [(decay ** (len(batches) - 1 - age), reward) for age, batch in enumerate(batches) for reward in batch]
    total, squares = math.fsum(w for w, _ in weighted), math.fsum(w * w for w, _ in weighted)
    mean = math.fsum(w * r for w, r in weighted) / total
    m2 = math.fsum(w * (r - mean) ** 2 for w, r in weighted)
    assert known.weight == pytest.approx(total)
    assert known.effective == pytest.approx(total**2 / squares)
    assert known.mean == pytest.approx(mean, abs=1e-6)
    assert known.m2 == pytest.approx(m2, rel=1e-6, abs=1e-6)
    if known.effective > 1 + 1e-6:
        assert known.deviation == pytest.approx(math.sqrt(m2 / (total - squares / total)), rel=1e-4, abs=1e-3)


@given(BATCHES)
def test_without_decay_it_is_the_sample_mean_and_variance(batches: list[list[float]]) -> None:
    known, rewards = told(batches, 1.0), [reward for batch in batches for reward in batch]
    assert known.mean == pytest.approx(fmean(rewards), abs=1e-6)
    assert known.effective == pytest.approx(len(rewards))
    if len(rewards) > 1:
        assert known.deviation**2 == pytest.approx(variance(rewards), rel=1e-4, abs=1e-4)


def test_it_follows_a_policy_that_gets_better() -> None:
    known = told([[0.0] * 8] * 20 + [[1.0] * 8] * 20, 0.8)
    assert known.mean > 0.98
    assert known.effective == pytest.approx(8 * (1 + 0.8) / (1 - 0.8), rel=0.05)


@given(BATCHES, REWARDS, st.floats(0.3, 1))
def test_an_advantage_is_in_deviations_and_no_larger_than_a_group_can_give(
    batches: list[list[float]], reward: float, decay: float
) -> None:
    known = told(batches, decay)
    found = known.advantage(reward)
    n = known.effective + 1
    assert abs(found) <= (n - 1) / math.sqrt(n) + 1e-9
    if known.deviation and abs(found) < (n - 1) / math.sqrt(n) - 1e-9:
        assert found == pytest.approx((reward - known.mean) / (known.deviation + EPSILON))


def test_equal_rewards_give_no_measure() -> None:
    assert told([[0.5] * 20], 0.9).advantage(1.0) == 0.0
    assert Baseline().advantage(1.0) == 0.0


SEEN = told([[0.0, 1.0] * 10], 0.9)


def test_a_group_of_one_is_held_against_its_scenario_and_counted() -> None:
    scored = {"a": Scored("1", 1.0, "s"), "b": Scored("2", 0.0, "s"), "c": Scored("3", 1.0, "other")}
    advantages, counts = group_advantages(scored, {"recorded": {"s": SEEN}}, 16)
    deviation = stdev([0.0, 1.0] * 10)
    assert advantages == {
        "a": pytest.approx(0.5 / (deviation + EPSILON)), "b": pytest.approx(-0.5 / (deviation + EPSILON)), "c": 0.0
    }  # fmt: skip
    assert counts == {"compared": 0, "singletons": 1, "singletons_by_baseline": 2, "without_spread": 0}
    assert held_against(scored, {"recorded": {"s": SEEN, "unused": SEEN}}, 16) == {"recorded": {"s": SEEN}}


@pytest.mark.parametrize(
    ("one", "min_weight"),
    [
        (Scored("1", 1.0, "s"), 21),
        (Scored("1", 1.0, ""), 2),
        (Scored("1", 1.0, "s", "weighted"), 2),
        (Scored("1", 1.0, "s", "ruler"), 2),
        (Scored("1", 1e300, "s"), 2),
    ],
    ids=["seen-too-little", "no-scenario", "other-scale", "scored-in-its-group-alone", "no-number-for-squares"],
)
def test_a_baseline_that_cannot_tell_is_not_used(one: Scored, min_weight: float) -> None:
    baselines = {scorer: {"s": SEEN, "": SEEN} for scorer in ("recorded", "ruler")}
    advantages, counts = group_advantages({"a": one}, baselines, min_weight)
    assert advantages == {"a": 0.0}
    assert counts["singletons"] == 1
    assert held_against({"a": one}, baselines, min_weight) == {}


def test_a_baseline_does_not_touch_groups_that_compare_themselves() -> None:
    scored = {"a": Scored("1", 1.0, "s"), "b": Scored("1", 3.0, "s")}
    assert group_advantages(scored, {"recorded": {"s": SEEN}}, 2)[0] == group_advantages(scored)[0]
    assert held_against(scored, {"recorded": {"s": SEEN}}, 2) == {}


def test_a_batch_tells_each_scenario_its_rewards_by_the_scale_that_they_have() -> None:
    scored = {
        "a": Scored("1", 1.0, "s"), "b": Scored("1", 3.0, "s"), "c": Scored("2", 5.0, "s"),
        "d": Scored("3", 0.5, "s", "ruler"), "e": Scored("4", 7.0, "s", "weighted"), "f": Scored("5", 1.0),
        "g": Scored("6", 1e200, "t"),
    }  # fmt: skip
    assert observed(scored) == {
        "recorded": {"s": Observed.of([1.0, 3.0, 5.0])}, "weighted": {"s": Observed.of([7.0])}
    }  # fmt: skip
