"""What outcomes say about a trajectory: by rules in order, the same however and whenever it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.outcomes import Outcome, Rule
from services.recorder.ledger.judging import WHOLE, EntryKey, Judgment, fits, same
from tests.support.play import outcomes, rules

actions = st.none() | st.fixed_dictionaries(
    {"name": st.sampled_from(["buy", "sell"])},
    optional={
        "success": st.none() | st.booleans(),
        "parameters": st.dictionaries(st.sampled_from(["n", "market"]), st.sampled_from([1, 2, True, "m-1"])),
    },
)


def outcome(*judged: Rule, **fields: Any) -> Outcome:
    return Outcome(**{"scenario_id": "s", "subject": "m-1", "source": "oracle", "rules": list(judged), **fields})


def judge(one: Outcome, steps: list[dict[str, Any] | None]) -> dict[int, float]:
    judgment = Judgment([one])
    for number, action in enumerate(steps):
        judgment.show(number, action)
    return {key.step: value for key, value in judgment.entries().items()}


BUY, SELL = {"name": "buy", "parameters": {"n": 1, "m": "x"}}, {"name": "sell", "parameters": {}}


@pytest.mark.parametrize(
    ("rule", "fitting"),
    [
        ({}, [BUY, SELL, None]),
        ({"action": "buy"}, [BUY]),
        ({"parameters": {"n": 1}}, [BUY]),
        ({"parameters": {"n": 1.0}}, [BUY]),
        ({"parameters": {"n": True}}, []),
        ({"parameters": {"n": 1, "other": None}}, []),
        ({"action": "sell", "parameters": {"n": 1}}, []),
        ({"success": True}, [{**BUY, "success": True}]),
        ({"success": False}, [{**BUY, "success": False}]),
    ],
)
def test_a_rule_fits_what_meets_all_its_conditions(rule: dict[str, Any], fitting: list[Any]) -> None:
    asked = [BUY, SELL, None, {**BUY, "success": True}, {**BUY, "success": False}]
    found = [action for action in asked if fits(Rule(value=1.0, **rule), action)]
    assert [action for action in found if action in fitting] == fitting
    if rule.keys() & {"success"} or not fitting:
        assert found == fitting


def test_the_first_rule_that_fits_judges_a_step() -> None:
    one = outcome(Rule(action="buy", parameters={"n": 1}, value=1.0), Rule(action="buy", value=-1.0), Rule(value=0.0))
    assert judge(one, [BUY, {"name": "buy"}, SELL, None]) == {0: 1.0, 1: -1.0, 2: 0.0, 3: 0.0}


def test_a_step_that_no_rule_fits_has_no_entry() -> None:
    assert judge(outcome(Rule(action="buy", value=1.0)), [SELL, None]) == {}


def test_a_trajectory_is_judged_once_by_the_first_rule_that_fits_any_of_its_steps() -> None:
    whole = [Rule(action="sell", value=5.0, scope="trajectory"), Rule(action="buy", value=2.0, scope="trajectory")]
    assert judge(outcome(*whole), [BUY, BUY, SELL]) == {WHOLE: 5.0}
    assert judge(outcome(*whole), [BUY, BUY]) == {WHOLE: 2.0}
    assert judge(outcome(*whole), [None]) == {}
    assert judge(outcome(*whole, Rule(value=-1.0, scope="trajectory")), []) == {WHOLE: -1.0}


def test_a_number_that_was_published_twice_is_judged_once_by_its_first() -> None:
    judgment = Judgment([outcome(Rule(action="buy", value=1.0), Rule(action="sell", value=2.0))])
    judgment.show(3, BUY)
    judgment.show(3, SELL)
    assert list(judgment.entries().values()) == [1.0]


def test_a_retracted_outcome_says_nothing() -> None:
    assert judge(outcome(Rule(value=1.0), Rule(value=2.0, scope="trajectory"), retracted=True), [BUY]) == {}


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True), (1, True, False), (0, False, False), (True, True, True), ("1", 1, False), (None, None, True),
        ([1, {"a": 1}], [1.0, {"a": 1.0}], True), ([1], [True], False), ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], [1, 2], False),
    ],
)  # fmt: skip
def test_json_values_are_compared_as_json(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) is equal
    assert same(other, one) is equal


@given(st.lists(rules, max_size=5), st.lists(actions, max_size=6))
def test_each_step_and_the_whole_are_judged_as_a_plain_reading_of_the_rules_has_it(
    judged: list[Rule], steps: list[Any]
) -> None:
    want: dict[int, float] = {}
    for number, action in enumerate(steps):
        for rule in judged:
            if rule.scope == "step" and fits(rule, action):
                want[number] = rule.value
                break
    for rule in judged:
        always = rule.action is None and rule.success is None and not rule.parameters
        if rule.scope == "trajectory" and (always or any(fits(rule, action) for action in steps)):
            want[WHOLE] = rule.value
            break
    assert judge(outcome(*judged), steps) == want


@given(outcomes([{"scenario_id": "s"}, {"window_id": "2026-11-23T04"}]), st.lists(actions, max_size=6))
def test_outcomes_about_different_things_never_touch_each_others_entries(
    found: list[Outcome], steps: list[Any]
) -> None:
    newest = {one.about: one for one in found}
    together = Judgment(newest.values())
    apart: dict[EntryKey, float] = {}
    for number, action in enumerate(steps):
        together.show(number, action)
    for one in newest.values():
        apart |= {EntryKey(step, one.about): value for step, value in judge(one, steps).items()}
    assert together.entries() == apart
