"""What events add to their trajectory's row: the same whatever their order, repeats and batching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.events import Event, Failure, LLMCall, Reward, RewardKind, Step, TrajectoryEnded, Usage
from flywheel.exact import decimal_text, units
from flywheel.trajectory import assemble
from services.recorder.aggregate import Delta, aggregate, delta_of
from tests.support.play import deliveries, plays
from tests.support.recording import envelope


def deltas(events: Sequence[Event]) -> list[Delta]:
    return [delta_of(event, event.time.astimezone(UTC)) for event in events]


def total(batches: list[list[Event]]) -> Delta:
    """The row after these batches: each event counts once, as the primary key has it."""
    seen: set[Any] = set()
    row: Delta | None = None
    for batch in batches:
        new = [e for n, e in enumerate(batch) if e.event_id not in seen and e not in batch[:n]]
        seen |= {event.event_id for event in new}
        for delta in aggregate(deltas(new)):
            if row is None:
                row = delta
            else:
                row.absorb(delta)
    assert row is not None
    return row


@given(st.data())
def test_any_interleaving_duplication_and_batching_gives_the_same_row(data: st.DataObject) -> None:
    events = data.draw(plays())
    assert total(data.draw(deliveries(events))) == total([events])


@given(plays())
def test_the_row_agrees_with_the_assembled_trajectory(events: list[Event]) -> None:
    row, whole = total([events]), assemble(events)
    assert row.events == whole.event_count
    assert row.seq_max + 1 - row.events == whole.missing_count
    assert row.steps == len(whole.steps)
    assert row.llm_calls == len(list(whole.all_llm_calls()))
    total_reward = float(decimal_text(row.reward_sum))
    assert (total_reward if row.reward_count and math.isfinite(total_reward) else None) == whole.total_reward
    assert row.first_event_at == whole.first_event_at
    assert (row.start and row.start.scenario_id) == whole.scenario_id
    assert (row.start and row.start.started_at) == whole.started_at
    assert (row.end and row.end.ended_at) == whole.ended_at
    assert (row.end.status if row.end else "open") == whole.status
    # As the table's generated column ``failure`` has it: an error without a stated cause, after infrastructure failed.
    blamed = row.end and row.end.status == "error" and row.infrastructure_failures
    assert ((row.end and row.end.stated_failure) or (Failure.INFRASTRUCTURE if blamed else None)) == whole.failure


@given(st.lists(plays(most=4), min_size=1, max_size=4))
def test_rows_come_in_the_order_in_which_they_are_locked(groups: list[list[Event]]) -> None:
    mixed = [e.model_copy(update={"trajectory_id": f"t{n}"}) for n, group in enumerate(groups) for e in group]
    ids = [delta.trajectory_id for delta in aggregate(deltas(mixed[::-1]))]
    assert ids == sorted({event.trajectory_id for event in mixed})


@pytest.mark.parametrize("kind", RewardKind)
def test_only_immediate_rewards_and_outcomes_add_to_the_reward(kind: RewardKind) -> None:
    (delta,) = deltas([Reward(**envelope("t", 0, reward_kind=kind, value=2.0))])
    counts = kind in (RewardKind.IMMEDIATE, RewardKind.OUTCOME)
    assert (delta.reward_sum, delta.reward_count, delta.rewards) == ((units(2.0), 1, 1) if counts else (0, 0, 1))


def test_a_step_adds_its_reward_and_never_its_components() -> None:
    (delta,) = deltas([Step(**envelope("t", 0, step=0, reward=0.25, reward_components={"pnl": 9.0}))])
    assert (delta.reward_sum, delta.reward_count) == (units(0.25), 1)
    (delta,) = deltas([Step(**envelope("t", 0, step=0))])
    assert delta.reward_count == 0


def test_tokens_are_as_reported_or_else_counted() -> None:
    call = envelope("t", 0, model="m", prompt_token_ids=[1, 2], completion_token_ids=[3])
    (delta,) = deltas([LLMCall(**call, usage=Usage(prompt_tokens=40))])
    assert (delta.prompt_tokens, delta.completion_tokens, delta.untrainable_calls) == (40, 1, 1)


def test_a_stated_failure_is_kept() -> None:
    (delta,) = deltas([TrajectoryEnded(**envelope("t", 0), status="error", failure=Failure.INFRASTRUCTURE)])
    assert delta.end is not None and delta.end.stated_failure == "infrastructure"
