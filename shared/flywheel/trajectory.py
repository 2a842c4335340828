"""Assembly: the events of one trajectory, in any order and with repeats, to one document. Pure and deterministic.

The rules, which agree with the counters of the ``trajectories`` table:

* An event counts once, by its ``event_id``. ``seq`` orders, then ``event_id``; clocks never do.
* Every step event is a step. Calls, accesses and rewards that name a step belong to it (to its first event, should a
  number have been published twice); those that name none, or one that never arrived, are kept outside the steps.
* Entries of the reward ledger (what outcomes said) are rewards like those that events brought, and stand after them.
* The total reward is the exact sum, rounded once, of the steps' own rewards and of the rewards of kind ``immediate``
  and ``outcome``. Components break a reward down, judges and people give opinions: neither is added. Without any there
  is no total, which is not the same as 0; nor where the sum is beyond every float (``flywheel validate`` shows those).
* An error without a stated cause is infrastructure's failure if an LLM call failed by infrastructure.
* The window is the UTC hour of the start; of the earliest event until the start was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

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
    dump,
)
from flywheel.exact import rounded_sum
from flywheel.outcomes import RewardEntry
from flywheel.windows import window_of

#: Kinds of reward entries that add to the total.
ADDED = frozenset({RewardKind.IMMEDIATE, RewardKind.OUTCOME})

#: Most holes that a document lists one by one. ``missing_count`` always has the whole number.
MISSING_LISTED = 1000

_E = TypeVar("_E", bound=Envelope)


class StepView(Step):
    """A step with everything that served or judged it."""

    llm_calls: list[LLMCall] = Field(default_factory=list)
    provider_accesses: list[ProviderAccess] = Field(default_factory=list)
    rewards: list[Reward | RewardEntry] = Field(default_factory=list)


class Trajectory(BaseModel):
    """One attempt of one agent at one scenario, whole."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")

    trajectory_id: str
    revision: int = Field(default=0, description="0 open; 1 closed; 2, 3 … changed since")
    agent_id: str
    scenario_id: str | None = None
    group_id: str | None = None
    group_size: int | None = None
    episode_id: str | None = None
    split: str = "train"
    channel: str | None = None
    model_version: str | None = Field(default=None, description="as the agent said at the start")
    window_id: str
    status: Status
    failure: Failure | None = None
    error: str | None = None
    first_event_at: AwareDatetime
    started_at: AwareDatetime | None = Field(default=None, description="none: its start was not seen")
    ended_at: AwareDatetime | None = Field(default=None, description="none: its end was not seen")
    total_reward: float | None = Field(default=None, description="none: it has no reward, which is not reward 0")
    reward_components: dict[str, float] = Field(default_factory=dict, description="sums by name; never in the total")
    final_balance: float | None = None
    final_pnl: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    game_knowledge: dict[str, Any] = Field(default_factory=dict, description="known only at the end: never in a prompt")
    steps: list[StepView] = Field(default_factory=list)
    outside_llm_calls: list[LLMCall] = Field(default_factory=list, description="calls that belong to no step")
    outside_provider_accesses: list[ProviderAccess] = Field(default_factory=list)
    outside_rewards: list[Reward | RewardEntry] = Field(
        default_factory=list, description="rewards of the trajectory as a whole"
    )
    missing: list[int] = Field(default_factory=list, description="the first holes in seq: events that never arrived")
    missing_count: int = 0
    event_count: int = 0
    events: tuple[Event, ...] = Field(
        default=(),
        exclude=True,
        repr=False,
        description="every event as it came, unknown fields too; not part of the dumped document",
    )

    def all_llm_calls(self) -> Iterator[LLMCall]:
        """Yield every call, inside steps and outside, in the order of ``seq``."""
        return (event for event in self.events if isinstance(event, LLMCall))

    def version_of(self, call: LLMCall) -> str | None:
        """Return the policy version that sampled ``call``: the call's own word, else the trajectory's."""
        return call.model_version or self.model_version


def assemble(events: Iterable[Event], *, entries: Iterable[RewardEntry] = (), revision: int = 0) -> Trajectory:
    """Build the document of the one trajectory that ``events``, and ``entries`` of the reward ledger, belong to.

    The result depends on their sets alone, not on their order, nor on repetition of events. ``revision`` is the
    recorder's; from 1 on the trajectory is closed, so that one without an end event reads ``incomplete`` instead of
    ``open``.
    Raises ValueError without any event, or with events of several trajectories.
    """
    ordered = _unique(events)
    if not ordered:
        raise ValueError("a trajectory has at least one event")
    if len({event.trajectory_id for event in ordered}) > 1:
        raise ValueError("events of several trajectories")

    started = next(iter(_of(ordered, TrajectoryStarted)), None)
    ended = next(reversed(_of(ordered, TrajectoryEnded)), None)
    steps, calls, accesses = _of(ordered, Step), _of(ordered, LLMCall), _of(ordered, ProviderAccess)
    rewards: list[Reward | RewardEntry] = [*_of(ordered, Reward)]
    numbers = {step.step for step in steps}
    rewards += sorted(entries, key=lambda entry: entry.order)
    first_event_at = min(event.time for event in ordered)
    missing, missing_count = _holes(ordered)
    return Trajectory(
        trajectory_id=ordered[0].trajectory_id,
        revision=revision,
        agent_id=started.agent_id if started else min(event.agent_id for event in ordered),
        window_id=window_of(started.time if started else first_event_at),
        first_event_at=first_event_at,
        total_reward=_total(steps, rewards),
        reward_components=_components(steps, rewards),
        steps=_views(steps, calls, accesses, rewards),
        outside_llm_calls=_outside(calls, numbers),
        outside_provider_accesses=_outside(accesses, numbers),
        outside_rewards=_outside(rewards, numbers),
        missing=missing,
        missing_count=missing_count,
        event_count=len(ordered),
        events=tuple(ordered),
        **_beginning(started),
        **_end(ended, calls, revision),
    )


def _beginning(started: TrajectoryStarted | None) -> dict[str, Any]:
    if started is None:
        return {}
    return {
        "scenario_id": started.scenario_id,
        "group_id": started.group_id,
        "group_size": started.group_size,
        "episode_id": started.episode_id,
        "split": started.split,
        "channel": started.channel,
        "model_version": started.model_version,
        "started_at": started.time,
        "metadata": started.metadata,
    }


def _end(ended: TrajectoryEnded | None, calls: Sequence[LLMCall], revision: int) -> dict[str, Any]:
    if ended is None:
        return {"status": Status.INCOMPLETE if revision else Status.OPEN}
    broken = ended.status == Status.ERROR and any(call.failure is Failure.INFRASTRUCTURE for call in calls)
    return {
        "status": Status(ended.status),
        "failure": ended.failure or (Failure.INFRASTRUCTURE if broken else None),
        "error": ended.error,
        "ended_at": ended.time,
        "final_balance": ended.final_balance,
        "final_pnl": ended.final_pnl,
        "metrics": ended.metrics,
        "game_knowledge": ended.game_knowledge,
    }


def _unique(events: Iterable[Event]) -> list[Event]:
    by_id: dict[Any, Event] = {}
    for event in events:
        known = by_id.get(event.event_id)
        # Other bytes under the same id never get past the recorder; should they, the choice must not depend on order.
        if known is None or (known != event and dump(event) < dump(known)):
            by_id[event.event_id] = event
    return sorted(by_id.values(), key=lambda event: (event.seq, event.event_id.int))


def _of(events: Sequence[Event], kind: type[_E]) -> list[_E]:
    return [event for event in events if isinstance(event, kind)]


def _outside(events: Sequence[Any], numbers: set[int]) -> list[Any]:
    return [event for event in events if event.step is None or event.step not in numbers]


def _views(
    steps: Sequence[Step],
    calls: Sequence[LLMCall],
    accesses: Sequence[ProviderAccess],
    rewards: Sequence[Reward | RewardEntry],
) -> list[StepView]:
    views: list[StepView] = []
    by_number: dict[int, StepView] = {}
    for step in sorted(steps, key=lambda step: (step.step, step.seq, step.event_id.int)):
        # Validated once, as an event: no second time here. A producer's unknown fields stay, our own names win.
        view = StepView.model_construct(**step.__dict__, llm_calls=[], provider_accesses=[], rewards=[])
        for name, value in (step.model_extra or {}).items():
            if view.model_extra is not None and name not in StepView.model_fields:
                view.model_extra[name] = value
        views.append(view)
        by_number.setdefault(step.step, view)
    for name, events in (("llm_calls", calls), ("provider_accesses", accesses), ("rewards", rewards)):
        for event in events:
            if event.step is not None and (view := by_number.get(event.step)) is not None:
                getattr(view, name).append(event)
    return views


def _total(steps: Sequence[Step], rewards: Sequence[Reward | RewardEntry]) -> float | None:
    values = [step.reward for step in steps if step.reward is not None]
    values += [reward.value for reward in rewards if reward.reward_kind in ADDED]
    total = rounded_sum(values)
    return total if values and math.isfinite(total) else None


def _components(steps: Sequence[Step], rewards: Sequence[Reward | RewardEntry]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.reward_components.items():
            values.setdefault(name, []).append(value)
    for reward in rewards:
        if reward.reward_kind is RewardKind.COMPONENT:
            values.setdefault(reward.name, []).append(reward.value)
    return {name: rounded_sum(values[name]) for name in sorted(values)}


def _holes(ordered: Sequence[Event]) -> tuple[list[int], int]:
    """Return the first holes in ``seq`` and the number of all, in time and memory of the events, not of the gaps."""
    listed: list[int] = []
    count, expected = 0, 0
    for event in ordered:
        if event.seq > expected:
            count += event.seq - expected
            listed.extend(range(expected, min(event.seq, expected + MISSING_LISTED - len(listed))))
        expected = max(expected, event.seq + 1)
    return listed, count
