from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from flywheel.events import Event, LLMCall, Step, TrajectoryStarted, dump
from flywheel.tools.checks import CHECKS
from flywheel.tools.findings import Finding, Limits, Stored, TrajectoryRow, read
from flywheel.tools.generator import Recipe, trajectory
from flywheel.tools.prose import Prose
from flywheel.tools.validation import EXAMPLES, Validation, as_document, as_text
from flywheel.trajectory import assemble
from flywheel.windows import window_of

NOW = datetime(2026, 3, 1, 6, tzinfo=UTC)
LIMITS = Limits(now=NOW, open_for=timedelta(minutes=30))
RECIPE = Recipe(start=datetime(2026, 3, 1, 4, 59, 50, tzinfo=UTC), tokens=24, failures=0.0, errors=0.0)
PROSE = Prose("0")


def row_for(events: Sequence[Event], **changes: Any) -> TrajectoryRow:
    """The row that a right recorder writes."""
    whole = assemble(events)
    calls = list(whole.all_llm_calls())
    rewards = [e for e in events if e.kind == "reward"]
    added = [e for e in rewards if e.reward_kind in ("immediate", "outcome")]
    row = TrajectoryRow(
        trajectory_id=whole.trajectory_id, agent_id=whole.agent_id, window_id=whole.window_id,
        status=str(whole.status), failure=None, started_at=whole.started_at, last_ingested_at=NOW,
        events=len(events), steps=len(whole.steps), llm_calls=len(calls),
        untrainable_calls=sum(not call.trainable for call in calls),
        provider_accesses=sum(e.kind == "provider_access" for e in events), rewards=len(rewards),
        reward_sum=Decimal(whole.total_reward or 0), outcome_sum=Decimal(0), outcome_count=0,
        total_reward=whole.total_reward,
        reward_count=len(added) + sum(s.reward is not None for s in whole.steps),
        prompt_tokens=sum(len(call.prompt_token_ids or ()) for call in calls),
        completion_tokens=sum(len(call.completion_token_ids or ()) for call in calls),
        seq_max=max(e.seq for e in events),
    )  # fmt: skip
    return replace(row, **changes)


def good(**changes: Any) -> Stored:
    events = trajectory(RECIPE, 0, PROSE)
    return Stored(row_for(events, **changes), events)


def changed(kind: type[Any], **values: Any) -> Stored:
    """A trajectory whose events of one kind were published with other values; its row agrees with them."""
    events = [e.model_copy(update=values) if isinstance(e, kind) else e for e in trajectory(RECIPE, 0, PROSE)]
    return Stored(row_for(events), events)


def without(kind: type[Any]) -> Stored:
    events = [e for e in trajectory(RECIPE, 0, PROSE) if not isinstance(e, kind)]
    return Stored(row_for(events), events)


def verdicts(*stored: Stored) -> dict[str, str]:
    validation = Validation(LIMITS)
    for one in stored:
        validation.judge(one)
    return {tally.name: tally.verdict for tally in validation.tallies}


def test_a_good_trajectory_passes_every_check() -> None:
    assert set(verdicts(good()).values()) == {"PASS"}


def test_no_check_passes_on_no_data() -> None:
    assert set(verdicts().values()) == {"WARN"}
    assert "no data" in as_text(Validation(LIMITS).tallies)


def test_no_check_passes_on_an_open_trajectory_that_only_began() -> None:
    events = trajectory(RECIPE, 0, PROSE)[:1]
    only_open = verdicts(Stored(row_for(events, status="open"), events))
    assert {name for name, verdict in only_open.items() if verdict == "PASS"} == {
        "bodies_readable", "seq_unique", "window_right", "none_left_open", "aggregates_agree",
    }  # fmt: skip


SPOILT: list[tuple[str, str, Callable[[], Stored]]] = [
    ("steps_present", "FAIL", lambda: without(Step)),
    ("llm_calls_present", "FAIL", lambda: without(LLMCall)),
    ("prompts_nontrivial", "FAIL", lambda: changed(LLMCall, messages=None)),
    ("prompts_nontrivial", "FAIL", lambda: changed(LLMCall, messages=None, user_prompt="  hi \n    ")),
    ("tokens_recorded", "WARN", lambda: changed(LLMCall, completion_token_ids=None, completion_logprobs=None)),
    ("tokens_aligned", "FAIL", lambda: changed(LLMCall, completion_logprobs=[-0.5])),
    ("tokens_aligned", "FAIL", lambda: changed(LLMCall, completion_logprobs=None)),
    ("tokens_aligned", "FAIL", lambda: changed(LLMCall, prompt_token_ids=[1, 2, 3])),
    ("aggregates_agree", "FAIL", lambda: good(prompt_tokens=1)),
    ("logprobs_negative", "FAIL", lambda: changed(LLMCall, completion_logprobs=[0.9])),
    ("actions_present", "WARN", lambda: changed(Step, action=None)),
    ("rewards_finite", "FAIL", lambda: good(total_reward=None)),
    ("rewards_present", "WARN", lambda: good(reward_count=0)),
    ("start_seen", "WARN", lambda: good(started_at=None)),
    ("no_gaps", "FAIL", lambda: without(TrajectoryStarted)),
    ("seq_unique", "FAIL", lambda: changed(Step, seq=3)),
    ("window_right", "FAIL", lambda: good(window_id="2026-03-01T05")),
    ("none_left_open", "FAIL", lambda: good(status="open", last_ingested_at=NOW - timedelta(minutes=31))),
    ("aggregates_agree", "FAIL", lambda: good(steps=4)),
    ("aggregates_agree", "FAIL", lambda: good(reward_sum=Decimal("0.123"))),
    ("aggregates_agree", "FAIL", lambda: good(untrainable_calls=1)),
    ("aggregates_agree", "FAIL", lambda: good(outcome_sum=Decimal(1))),
    ("aggregates_agree", "FAIL", lambda: good(outcome_count=1)),
    ("aggregates_agree", "FAIL", lambda: good(seq_max=99)),
]


@pytest.mark.parametrize(("check", "verdict", "spoilt"), SPOILT)
def test_a_check_finds_what_it_is_for(check: str, verdict: str, spoilt: Callable[[], Stored]) -> None:
    assert verdicts(good(), spoilt())[check] == verdict


def test_every_check_was_shown_to_find_something() -> None:
    shown = {name for name, _, _ in SPOILT} | {"bodies_readable", "actions_with_result"}
    assert shown == {check.name for check in CHECKS}


def test_an_action_without_any_outcome_is_told() -> None:
    events = [
        e.model_copy(update={"action": e.action.model_copy(update={"success": None, "result": None, "error": None})})
        if isinstance(e, Step) and e.action
        else e
        for e in trajectory(RECIPE, 0, PROSE)
    ]
    assert verdicts(Stored(row_for(events), events))["actions_with_result"] == "WARN"


def test_a_body_that_no_longer_reads_is_told_and_not_counted_as_a_wrong_counter() -> None:
    events = trajectory(RECIPE, 0, PROSE)
    bodies = [(str(e.event_id), dump(e).decode()) for e in events]
    bodies[3] = (bodies[3][0], '{"kind": "step"}')
    found = verdicts(read(row_for(events), bodies))
    assert found["bodies_readable"] == "FAIL"
    assert found["aggregates_agree"] == "WARN"  # no data


def test_failed_infrastructure_need_not_have_steps() -> None:
    spoilt = replace(without(Step).row, status="error", failure="infrastructure")
    assert verdicts(good(), Stored(spoilt, without(Step).events))["steps_present"] == "PASS"


def test_a_trajectory_that_crosses_the_hour_belongs_to_the_hour_of_its_start() -> None:
    events = trajectory(RECIPE, 2, PROSE)
    assert window_of(events[0].time) == "2026-03-01T04"
    assert window_of(events[-1].time) == "2026-03-01T05"
    assert verdicts(Stored(row_for(events), events))["window_right"] == "PASS"


def test_a_warn_fails_only_under_strict() -> None:
    validation = Validation(LIMITS)
    validation.judge(good())
    validation.judge(changed(Step, action=None))
    assert not validation.failed(strict=False)
    assert validation.failed(strict=True)


def test_few_examples_are_kept_of_many_findings() -> None:
    validation = Validation(LIMITS)
    validation.add("things", "Are they fine?", "mend them", (Finding(str(i), False) for i in range(1000)))
    document = as_document(validation.tallies)[-1]
    assert document["offending"] == 1000
    assert document["examples"] == [str(i) for i in range(EXAMPLES)]
    json.dumps(document)
