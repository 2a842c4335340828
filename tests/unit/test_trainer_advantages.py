"""Advantages compare a trajectory with its own group, whatever the group's size."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.advantages import EPSILON, Scored, group_advantages

REWARDS = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))
GROUPS = st.lists(st.lists(REWARDS, min_size=1, max_size=9), min_size=1, max_size=6)


def scored(groups: list[list[float]]) -> dict[str, Scored]:
    return {f"{g}-{i}": Scored(str(g), reward) for g, group in enumerate(groups) for i, reward in enumerate(group)}


def test_it_is_the_reward_minus_the_mean_over_the_sample_deviation() -> None:
    advantages, counts = group_advantages(scored([[0.0, 1.0, 2.0]]))
    assert advantages == {
        "0-0": pytest.approx(-1 / (1 + EPSILON)), "0-1": 0.0, "0-2": pytest.approx(1 / (1 + EPSILON))
    }  # fmt: skip
    assert counts == {"compared": 1, "singletons": 0, "singletons_by_baseline": 0, "without_spread": 0}


def test_a_singleton_and_a_uniform_group_have_nothing_to_compare_and_are_counted() -> None:
    advantages, counts = group_advantages(scored([[7.0], [0.3, 0.3, 0.3], [0.0, 1.0]]))
    assert [advantages[key] for key in ("0-0", "1-0", "1-1", "1-2")] == [0.0] * 4
    assert counts == {"compared": 1, "singletons": 1, "singletons_by_baseline": 0, "without_spread": 1}


@given(GROUPS)
def test_each_group_is_centred_scaled_and_in_the_order_of_its_rewards(groups: list[list[float]]) -> None:
    advantages, counts = group_advantages(scored(groups))
    assert set(advantages) == set(scored(groups))
    assert sum(counts.values()) == len(groups)
    for g, rewards in enumerate(groups):
        mine = [advantages[f"{g}-{i}"] for i in range(len(rewards))]
        assert fmean(mine) == pytest.approx(0.0, abs=1e-4)
        assert sum(a * a for a in mine) <= len(mine) - 1 + 1e-6
        assert all(math.isfinite(a) for a in mine)
        assert all((a <= b) for a, b in ordered_pairs(rewards, mine))


@given(GROUPS, st.floats(-100, 100), st.floats(0.5, 100))
def test_groups_do_not_see_each_other(groups: list[list[float]], shift: float, scale: float) -> None:
    before, _ = group_advantages(scored(groups))
    others = [[reward * scale + shift for reward in group] if g else group for g, group in enumerate(groups)]
    after, _ = group_advantages(scored(others))
    for i in range(len(groups[0])):
        assert before[f"0-{i}"] == after[f"0-{i}"]


def ordered_pairs(rewards: list[float], advantages: list[float]) -> list[tuple[float, float]]:
    pairs = sorted(zip(rewards, advantages, strict=True))
    return [(a[1], b[1]) for a, b in itertools.pairwise(pairs)]
