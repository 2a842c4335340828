from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.events import (
    Envelope,
    Event,
    Failure,
    LLMCall,
    ProviderAccess,
    Reward,
    RewardKind,
    Status,
    Step,
    TrajectoryEnded,
    TrajectoryStarted,
    parse,
)
from flywheel.outcomes import RewardEntry
from flywheel.trajectory import MISSING_LISTED, Trajectory, assemble

START = datetime(2026, 11, 23, 4, 59, 59, tzinfo=UTC)
finite = st.floats(-1e6, 1e6)
maybe_step = st.none() | st.integers(0, 6)


def common(seq: int) -> dict:
    return {"trajectory_id": "t-1", "agent_id": "agent", "seq": seq, "time": START + timedelta(seconds=seq)}


@st.composite
def event_lists(draw: st.DrawFn) -> list[Event]:
    """Events of one trajectory with distinct seq (holes allowed), at most one start and one end."""
    seqs = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=25)))
    out: list[Event] = []
    for seq in seqs:
        fields = common(seq)
        match draw(st.sampled_from(["step", "call", "access", "reward"])):
            case "step":
                parts = draw(st.dictionaries(st.sampled_from(["pnl", "risk"]), finite))
                out.append(
                    Step(
                        **fields, step=draw(st.integers(0, 6)), reward=draw(st.none() | finite), reward_components=parts
                    )
                )
            case "call":
                out.append(LLMCall(**fields, step=draw(maybe_step), model="m"))
            case "access":
                out.append(ProviderAccess(**fields, step=draw(maybe_step), provider="prices"))
            case "reward":
                kind = draw(st.sampled_from(list(RewardKind)))
                out.append(Reward(**fields, step=draw(maybe_step), reward_kind=kind, value=draw(finite)))
    if draw(st.booleans()):
        out[0] = TrajectoryStarted(**common(seqs[0]), scenario_id="s")
    if len(out) > 1 and draw(st.booleans()):
        out[-1] = TrajectoryEnded(**common(seqs[-1]))
    return out


@settings(deadline=None, max_examples=60)
@given(event_lists(), st.randoms(use_true_random=False))
def test_order_and_repetition_of_events_do_not_matter(events: list[Event], rng: random.Random) -> None:
    shuffled = events + rng.choices(events, k=len(events))
    rng.shuffle(shuffled)
    once, again = assemble(events, revision=1), assemble(shuffled, revision=1)
    assert once == again
    assert once.model_dump_json() == again.model_dump_json()


@settings(deadline=None, max_examples=60)
@given(event_lists())
def test_every_event_is_in_the_document_exactly_once(events: list[Event]) -> None:
    document = assemble(events)
    inside = [event for step in document.steps for event in (*step.llm_calls, *step.provider_accesses, *step.rewards)]
    outside = [*document.outside_llm_calls, *document.outside_provider_accesses, *document.outside_rewards]
    ends = [event for event in events if isinstance(event, TrajectoryStarted | TrajectoryEnded)]
    found = [event.event_id for event in (*document.steps, *inside, *outside, *ends) if isinstance(event, Envelope)]
    assert sorted(found) == sorted(event.event_id for event in events)
    assert list(document.events) == sorted(events, key=lambda event: event.seq)


@settings(deadline=None, max_examples=60)
@given(event_lists())
def test_total_reward_holes_and_counts_agree_with_the_tables_counters(events: list[Event]) -> None:
    document = assemble(events)
    added = [event.reward for event in events if isinstance(event, Step) and event.reward is not None]
    added += [e.value for e in events if isinstance(e, Reward) and e.reward_kind in ("immediate", "outcome")]
    if added:
        assert document.total_reward == pytest.approx(sum(added), abs=1e-6)
    else:
        assert document.total_reward is None
    assert document.missing_count == max(event.seq for event in events) + 1 - len(events)
    assert document.missing == sorted(set(range(max(e.seq for e in events))) - {e.seq for e in events})
    assert len(document.steps) == sum(isinstance(event, Step) for event in events)


def test_a_call_of_a_step_that_never_arrived_is_kept_outside_the_steps() -> None:
    document = assemble([Step(**common(0), step=0), LLMCall(**common(1), step=1, model="m")])
    assert document.steps[0].llm_calls == []
    assert [call.step for call in document.outside_llm_calls] == [1]
    assert [call.step for call in document.all_llm_calls()] == [1]


def test_components_judges_and_people_never_add_to_the_total() -> None:
    document = assemble(
        [
            Step(**common(0), step=0, reward=1.0, reward_components={"pnl": 5.0}),
            Reward(**common(1), reward_kind=RewardKind.COMPONENT, name="pnl", value=2.0),
            Reward(**common(2), reward_kind=RewardKind.JUDGE, value=9.0),
            Reward(**common(3), reward_kind=RewardKind.HUMAN, value=9.0),
            Reward(**common(4), reward_kind=RewardKind.OUTCOME, value=0.5),
            Reward(**common(5), step=0, reward_kind=RewardKind.IMMEDIATE, value=0.25),
        ]
    )
    assert document.total_reward == 1.75
    assert document.reward_components == {"pnl": 7.0}


def test_the_window_is_the_hour_of_the_start_wherever_the_rest_falls() -> None:
    late = Step(**{**common(1), "time": START + timedelta(hours=2)}, step=0)
    early = ProviderAccess(**{**common(2), "time": START - timedelta(hours=1)}, provider="p")
    start = TrajectoryStarted(**common(0), scenario_id="s")
    assert assemble([late, early, start]).window_id == "2026-11-23T04"
    assert assemble([late, early]).window_id == "2026-11-23T03"


def test_without_an_end_it_is_open_and_once_closed_incomplete() -> None:
    assert assemble([Step(**common(0), step=0)]).status is Status.OPEN
    assert assemble([Step(**common(0), step=0)], revision=1).status is Status.INCOMPLETE
    assert assemble([TrajectoryEnded(**common(0), status="timeout")]).status is Status.TIMEOUT


@pytest.mark.parametrize(
    ("status", "stated", "expected"),
    [
        ("error", None, Failure.INFRASTRUCTURE),
        ("error", Failure.AGENT, Failure.AGENT),
        ("completed", None, None),
        ("timeout", None, None),
    ],
)
def test_an_error_without_a_stated_cause_after_infrastructure_failed_is_infrastructures(
    status, stated, expected
) -> None:
    call = LLMCall(**common(0), model="m", failure=Failure.INFRASTRUCTURE)
    assert assemble([call, TrajectoryEnded(**common(1), status=status, failure=stated)]).failure is expected


def test_unknown_fields_stay_even_when_named_like_ours() -> None:
    raw = (
        b'{"kind":"step","trajectory_id":"t","agent_id":"a","seq":0,"step":0,"cls":1,"_fields_set":2,"llm_calls":"theirs",'
        b'"mood":"calm","event_id":"01a2064c-04ef-7681-9b90-4efa35735413","time":"2026-11-23T04:00:00Z"}'
    )
    document = assemble([parse(raw)])
    assert document.steps[0].model_dump()["mood"] == "calm"
    assert document.steps[0].llm_calls == []
    assert (document.events[0].model_extra or {})["llm_calls"] == "theirs"


def test_a_huge_gap_is_counted_without_being_listed() -> None:
    document = assemble([Step(**common(0), step=0), Step(**{**common(1), "seq": 2**31 - 1}, step=1)])
    assert document.missing_count == 2**31 - 2
    assert document.missing == list(range(1, MISSING_LISTED + 1))


def test_rewards_beyond_every_float_have_no_total() -> None:
    document = assemble([Step(**common(n), step=n, reward=1.7e308) for n in range(3)])
    assert document.total_reward is None


def test_a_total_that_a_float_holds_is_found_however_far_the_way_to_it_leads() -> None:
    rewards = [1.7e308, 1.7e308, -1.7e308, -1.7e308, 0.5]
    document = assemble([Step(**common(n), step=n, reward=reward) for n, reward in enumerate(rewards)])
    assert document.total_reward == 0.5


def entry(value: float, step: int | None = 0, **fields: Any) -> RewardEntry:
    given = {"name": "outcome", "source": "oracle", "subject": "m-1", "scope": "scenario", "key": "s", **fields}
    return RewardEntry(step=step, value=value, **given)


def test_entries_of_the_ledger_are_rewards_of_their_step_and_of_the_total() -> None:
    events = [
        Step(**common(0), step=0, reward=0.5),
        Reward(**common(1), step=0, reward_kind=RewardKind.JUDGE, value=9.0),
    ]
    entries = [entry(2.0), entry(-1.0, step=None), entry(4.0, subject="a-first")]
    document = assemble(events, entries=entries)
    assert document.total_reward == 5.5
    assert [reward.value for reward in document.steps[0].rewards] == [9.0, 4.0, 2.0]
    assert document.outside_rewards == [entries[1]]
    assert assemble(events, entries=entries[::-1]) == document
    assert Trajectory.model_validate_json(document.model_dump_json()).steps[0].rewards == document.steps[0].rewards


def test_nothing_and_mixed_trajectories_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one event"):
        assemble([])
    with pytest.raises(ValueError, match="several"):
        assemble([Step(**common(0), step=0), Step(**{**common(0), "trajectory_id": "t-2"}, step=0)])


def test_the_document_survives_its_own_json() -> None:
    document = assemble([TrajectoryStarted(**common(0), scenario_id="s"), Step(**common(1), step=0, reward=0.5)])
    again = Trajectory.model_validate_json(document.model_dump_json())
    assert again.model_dump() == document.model_dump()
