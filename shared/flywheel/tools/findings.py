"""What ``flywheel validate`` looks at and what it finds: the words that the checks and their runner share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from flywheel.errors import PoisonError
from flywheel.events import Envelope, Event, parse
from flywheel.outcomes import RewardEntry

#: Ended by the agent or its environment, not by failed infrastructure and not given up by the recorder.
PLAYED = frozenset({"completed", "terminated", "timeout"})

_E = TypeVar("_E", bound=Envelope)


class Severity(StrEnum):
    """What it means when a check finds something."""

    FAIL = "FAIL"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it is as it should be, and otherwise how it is not."""

    subject: str
    fine: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRow:
    """The columns of ``trajectories`` that the checks judge."""

    trajectory_id: str
    agent_id: str
    window_id: str
    status: str
    failure: str | None
    started_at: datetime | None
    last_ingested_at: datetime
    events: int
    steps: int
    llm_calls: int
    untrainable_calls: int
    provider_accesses: int
    rewards: int
    reward_sum: Decimal
    reward_count: int
    outcome_sum: Decimal
    outcome_count: int
    total_reward: float | None
    prompt_tokens: int
    completion_tokens: int
    seq_max: int

    @property
    def open(self) -> bool:
        """Whether more is expected."""
        return self.status == "open"

    @property
    def played(self) -> bool:
        """Whether it ended by play: only then must anything be in it."""
        return self.status in PLAYED and self.failure != "infrastructure"


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored trajectory: its row, its events, and the bodies that could not be read."""

    row: TrajectoryRow
    events: Sequence[Event]
    entries: Sequence[RewardEntry] = ()
    unreadable: Sequence[tuple[str, str]] = ()

    def of(self, kind: type[_E]) -> Iterator[_E]:
        """Yield its events of one kind."""
        return (event for event in self.events if isinstance(event, kind))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the checks are told from outside."""

    now: datetime
    open_for: timedelta


Judge = Callable[[Stored, Limits], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """A question, how bad a no is, and what to do about it."""

    name: str
    question: str
    severity: Severity
    remedy: str
    judge: Judge


def read(row: TrajectoryRow, bodies: Iterable[tuple[str, str]], entries: Sequence[RewardEntry] = ()) -> Stored:
    """Decode stored bodies (event id, body) and put the entries of the ledger beside them; bodies that no longer read
    are kept as findings to come.
    """
    events: list[Event] = []
    unreadable: list[tuple[str, str]] = []
    for event_id, body in bodies:
        try:
            events.append(parse(body))
        except PoisonError as error:
            unreadable.append((event_id, f"{error.reason}: {error}"))
    return Stored(row, events, entries, unreadable)
