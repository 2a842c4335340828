from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.settings import ArchiverSettings
from services.archiver.readiness import Closed, Group, decide, unfit, whole

FIT = Closed("t", 1, "default", "completed", None, "train", 3, 0, "s", "g", 8)


def rules(**changes: float) -> ArchiverSettings:
    defaults = {
        "min_trajectories": 16,
        "min_groups": 2,
        "min_group_size": 2,
        "group_settle_s": 30.0,
        "max_trajectories": 32,
    }
    return ArchiverSettings.model_validate({**defaults, **changes})


def group(name: str, waiting: int = 8, declared: int | None = 8, quiet_s: float = 0.0, **changes: float) -> Group:
    plain = Group(name, waiting, accounted=waiting, declared=declared, quiet_s=quiet_s, age_s=quiet_s + 1)
    return replace(plain, **changes)


def test_a_finished_training_attempt_is_fit_an_agents_own_failure_too() -> None:
    assert unfit(FIT) is None
    assert unfit(replace(FIT, status="error", failure="agent")) is None
    assert unfit(replace(FIT, status="timeout", group_id=None, group_size=None)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": "held_out"}, "held_out"),
        ({"status": "error", "failure": "infrastructure"}, "infrastructure"),
        ({"status": "incomplete"}, "incomplete"),
        ({"steps": 0}, "no_steps"),
        ({"missing": 1}, "missing_events"),
        ({"split": "held_out", "steps": 0}, "held_out"),
    ],
)
def test_what_says_nothing_about_how_well_the_agent_played_is_not_trained_on(changes: dict, reason: str) -> None:
    assert unfit(replace(FIT, **changes)) == reason


def test_a_group_is_whole_when_all_it_declared_are_accounted_for_or_when_it_has_settled() -> None:
    assert whole(group("g", 8), 30)
    assert whole(group("g", 6, accounted=8), 30)
    assert not whole(group("g", 7), 30)
    assert whole(group("g", 7, quiet_s=30), 30)
    assert not whole(group("g", 7, declared=None, quiet_s=29), 30)
    assert whole(group("g", 7, declared=None, quiet_s=31), 30)


def test_enough_whole_groups_are_a_batch_and_the_words_carry_the_figures() -> None:
    decision = decide([group("a"), group("b")], rules())
    assert decision.ready
    assert set(decision.groups) == {"a", "b"}
    assert decision.words.startswith("ready: 16 whole-group trajectories (at least 16) in 2 groups (at least 2)")


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ([], "waiting: 0 whole-group trajectories"),
        ([group("a", 16, 16)], "in 1 groups (at least 2)"),
        ([group("a"), group("b", 7)], "1 unfinished"),
        ([group("a"), group("b"), group("c", 1, 1)][1:], "1 too small"),
        ([group("a", 33, 33), group("b")], "1 above 32"),
    ],
)
def test_too_little_waits_and_the_words_say_what_is_missing(groups: list[Group], why: str) -> None:
    decision = decide(groups, rules())
    assert not decision.ready
    assert why in decision.words
    assert decision.groups == ()


def test_single_trajectories_wait_or_train_as_the_smallest_group_size_says() -> None:
    singles = [group(f"t-{n}", 1, 1) for n in range(20)]
    assert not decide(singles, rules()).ready
    assert len(decide(singles, rules(min_group_size=1)).groups) == 20


def test_the_oldest_groups_go_first_and_the_rest_stays() -> None:
    groups = [group(f"g-{n}", age_s=float(n)) for n in range(6)]
    assert decide(groups, rules()).groups == ("g-5", "g-4", "g-3", "g-2")


groups_strategy = st.lists(
    st.builds(
        lambda name, waiting, missing, declared, quiet, age: Group(
            name, waiting, waiting, waiting + missing if declared else None, quiet, quiet + age
        ),
        st.text("abcdef", min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 2), st.booleans(),
        st.floats(0, 60), st.floats(0, 60),
    ),
    max_size=12, unique_by=lambda g: g.group_id,
)  # fmt: skip


@settings(deadline=None)
@given(groups_strategy, st.integers(1, 64), st.integers(1, 5), st.integers(1, 4), st.integers(1, 64))
def test_a_batch_keeps_every_rule_whatever_waits(groups, volume, number, size, most) -> None:
    limits = rules(min_trajectories=volume, min_groups=number, min_group_size=size, max_trajectories=most)
    decision = decide(groups, limits)
    by_id = {g.group_id: g for g in groups}
    taken = [by_id[name] for name in decision.groups]
    assert bool(taken) == decision.ready
    assert len({g.group_id for g in taken}) == len(taken)
    assert all(whole(g, limits.group_settle_s) and g.waiting >= size for g in taken)
    assert sum(g.waiting for g in taken) <= most
    usable = [g for g in groups if whole(g, limits.group_settle_s) and size <= g.waiting <= most]
    assert decision.ready == (sum(g.waiting for g in usable) >= volume and len(usable) >= number)
    assert decide(list(reversed(groups)), limits) == decision


def test_a_group_waits_for_the_outcome_of_those_without_a_reward_for_as_long_as_it_is_told() -> None:
    groups = [group("a", quiet_s=1.0), group("b", quiet_s=1.0, unrewarded_s=50.0), group("c", unrewarded_s=70.0)]
    assert len(decide(groups, rules()).groups) == 3  # unless told otherwise, nobody waits
    decision = decide(groups, rules(outcome_wait_s=60.0))
    assert decision.groups == ("a", "c")
    waiting = decide(groups[:2], rules(outcome_wait_s=60.0))
    assert not waiting.ready
    assert "1 without a reward" in waiting.words
