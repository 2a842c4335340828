"""What events add to their trajectory's row, purely. Deltas can be merged in any order and grouping, with the same
result.

The rules agree with :mod:`flywheel.trajectory`: the start with the lowest ``seq`` and the end with the highest hold,
should an agent have published several; only step rewards and reward entries of kind ``immediate`` and ``outcome``
add to the reward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from flywheel.events import Event, Failure
from flywheel.exact import units
from flywheel.trajectory import ADDED

#: Most tokens that one call can plausibly report; more would overflow the sums.
_MOST_TOKENS = 2**40


class Start(NamedTuple):
    """The columns that a trajectory's start settles. Ordered by ``seq``, then ``event_id``."""

    seq: int
    event_id: UUID
    started_at: datetime
    agent_id: str
    scenario_id: str
    group_id: str | None
    group_size: int | None
    episode_id: str | None
    split: str
    channel: str | None
    model_version: str | None


class End(NamedTuple):
    """The columns that a trajectory's end settles. Ordered by ``seq``, then ``event_id``."""

    seq: int
    event_id: UUID
    ended_at: datetime
    status: str
    stated_failure: str | None
    error: str | None
    final_balance: float | None
    final_pnl: float | None


@dataclass(init=False)
class Delta:
    """What some events add to one trajectory. One is made for every event: what it adds nothing to stays the class's
    attribute.
    """

    trajectory_id: str
    agent_id: str
    first_event_at: datetime
    seq_max: int
    events: int = 1
    steps: int = 0
    llm_calls: int = 0
    untrainable_calls: int = 0
    infrastructure_failures: int = 0
    provider_accesses: int = 0
    rewards: int = 0
    reward_sum: int = 0
    """Exact, in units of 2^-1074: the same in any order."""
    reward_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    start: Start | None = None
    end: End | None = None

    def __init__(self, trajectory_id: str, agent_id: str, first_event_at: datetime, seq_max: int) -> None:
        self.trajectory_id = trajectory_id
        self.agent_id = agent_id
        self.first_event_at = first_event_at
        self.seq_max = seq_max

    def copy(self) -> Delta:
        """Return another one that adds the same."""
        other = Delta.__new__(Delta)
        other.__dict__.update(self.__dict__)
        return other

    def absorb(self, other: Delta) -> None:
        """Add what other events of the same trajectory add. Commutative and associative."""
        self.agent_id = min(self.agent_id, other.agent_id)
        self.first_event_at = min(self.first_event_at, other.first_event_at)
        self.seq_max = max(self.seq_max, other.seq_max)
        self.events += other.events
        self.steps += other.steps
        self.llm_calls += other.llm_calls
        self.untrainable_calls += other.untrainable_calls
        self.infrastructure_failures += other.infrastructure_failures
        self.provider_accesses += other.provider_accesses
        self.rewards += other.rewards
        self.reward_sum += other.reward_sum
        self.reward_count += other.reward_count
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        if other.start and (self.start is None or other.start[:2] < self.start[:2]):
            self.start = other.start
        if other.end and (self.end is None or other.end[:2] > self.end[:2]):
            self.end = other.end


def delta_of(event: Event, time: datetime) -> Delta:
    """Return what one event, which happened at ``time`` (UTC), adds. Raises OverflowError for counts beyond all
    measure.
    """
    delta = Delta(event.trajectory_id, event.agent_id, time, event.seq)
    # By kind, not by class: the hot path has structs that look like the models.
    if event.kind == "step":
        delta.steps = 1
        _reward(delta, event.reward)
    elif event.kind == "llm_call":
        delta.llm_calls = 1
        delta.untrainable_calls = int(not event.trainable)
        delta.infrastructure_failures = int(event.failure is Failure.INFRASTRUCTURE)
        delta.prompt_tokens = _tokens(event.usage.prompt_tokens, event.prompt_token_ids)
        delta.completion_tokens = _tokens(event.usage.completion_tokens, event.completion_token_ids)
    elif event.kind == "provider_access":
        delta.provider_accesses = 1
    elif event.kind == "reward":
        delta.rewards = 1
        _reward(delta, event.value if event.reward_kind in ADDED else None)
    elif event.kind == "trajectory_started":
        delta.start = Start(
            event.seq, event.event_id, time, event.agent_id, event.scenario_id, event.group_id, event.group_size,
            event.episode_id, event.split, event.channel, event.model_version,
        )  # fmt: skip
    else:
        delta.end = End(
            event.seq, event.event_id, time, event.status, event.failure and event.failure.value, event.error,
            event.final_balance, event.final_pnl,
        )  # fmt: skip
    return delta


def aggregate(deltas: Iterable[Delta]) -> list[Delta]:
    """Merge deltas by trajectory, ordered by trajectory_id: the order in which rows are locked everywhere."""
    merged: dict[str, Delta] = {}
    for delta in deltas:
        known = merged.get(delta.trajectory_id)
        if known is None:
            merged[delta.trajectory_id] = delta.copy()
        else:
            known.absorb(delta)
    return [merged[trajectory_id] for trajectory_id in sorted(merged)]


def _reward(delta: Delta, value: float | None) -> None:
    if value is not None:
        delta.reward_sum, delta.reward_count = units(value), 1


def _tokens(reported: int | None, ids: list[int] | None) -> int:
    count = len(ids or ()) if reported is None else reported
    if count > _MOST_TOKENS:
        raise OverflowError(f"{count} tokens in one call")
    return count
