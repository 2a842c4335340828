"""When there is enough for a batch, and what goes into it. Pure: no clock, no I/O.

A batch is made of whole groups, because a group is what training compares. A group is whole when as many of its
attempts are accounted for as it declared, or when it has been quiet for so long that nobody else seems to come. A
trajectory without a group is a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flywheel.events import Failure, Status
from flywheel.settings import ArchiverSettings

#: The one reason that may pass: what is missing may be on its way, so a group still waits for it.
MISSING_EVENTS = "missing_events"


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed trajectory as the recorder has it now."""

    trajectory_id: str
    revision: int
    channel: str
    status: str
    failure: str | None
    split: str
    steps: int
    missing: int  # holes in seq: events that have not arrived (yet)
    scenario_id: str | None
    group_id: str | None
    group_size: int | None
    archived: bool = False  # some of its events are of a day that is archived, and perhaps dropped


@dataclass(frozen=True, slots=True)
class Group:
    """The trajectories of one group that wait for a batch."""

    group_id: str
    waiting: int
    accounted: int  # its attempts that wait, are in a batch, or ended unfit for training
    declared: int | None  # how many attempts the group will have, where known
    quiet_s: float  # since the last of them was queued
    age_s: float  # since the first of them was queued
    unrewarded_s: float | None = (
        None  # since the last of them closed that has no reward yet; None: each has one, or nobody asked
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to make a batch, why in words with figures, and of which groups (oldest first)."""

    ready: bool
    words: str
    groups: tuple[str, ...] = ()


def unfit(trajectory: Closed) -> str | None:
    """Return why a trajectory is not trained on, or None if it is.

    Held-out play measures; failed infrastructure says nothing about how well the agent played; without an end there is
    no outcome; without steps there is nothing to learn from; of a day that retention has put away there are no events
    at hand; with holes what was played is not known. A late event that fills the last hole makes it fit.
    """
    if trajectory.split != "train":
        return "held_out"
    if trajectory.failure == Failure.INFRASTRUCTURE:
        return "infrastructure"
    if trajectory.status == Status.INCOMPLETE:
        return "incomplete"
    if trajectory.steps == 0:
        return "no_steps"
    if trajectory.archived:
        return "archived"
    if trajectory.missing:
        return MISSING_EVENTS
    return None


def whole(group: Group, settle_s: float) -> bool:
    """Return whether nobody else is expected in the group."""
    if group.declared is not None and group.accounted >= group.declared:
        return True
    return group.quiet_s >= settle_s


def rewarded(group: Group, outcome_wait_s: float) -> bool:
    """Return whether each of the group has a reward, or has been waiting long enough for the outcome that brings it."""
    return group.unrewarded_s is None or group.unrewarded_s >= outcome_wait_s


def decide(groups: Iterable[Group], rules: ArchiverSettings) -> Decision:
    """Judge one channel's waiting groups.

    Volume and groups are judged by all that is ready. What is taken is the oldest groups, as many whole ones as
    ``max_trajectories`` has room for; the rest stays for the next batch.
    """
    found = list(groups)
    ended = [group for group in found if whole(group, rules.group_settle_s)]
    judged = [group for group in ended if rewarded(group, rules.outcome_wait_s)]
    ready = [group for group in judged if group.waiting >= rules.min_group_size]
    fitting = [group for group in ready if group.waiting <= rules.max_trajectories]
    volume = _volume(fitting)
    figures = (
        f"{volume} whole-group trajectories (at least {rules.min_trajectories}) "
        f"in {len(fitting)} groups (at least {rules.min_groups}) of at least {rules.min_group_size}"
    )
    if volume < rules.min_trajectories or len(fitting) < rules.min_groups:
        waiting = {
            "unfinished": len(found) - len(ended),
            "without a reward": len(ended) - len(judged),
            "too small": len(judged) - len(ready),
            f"above {rules.max_trajectories}": len(ready) - len(fitting),
        }
        others = ", ".join(f"{number} {why}" for why, number in waiting.items() if number)
        return Decision(False, f"waiting: {figures}" + (f"; other groups: {others}" if others else ""))
    taken = _take(fitting, rules.max_trajectories)
    words = f"ready: {figures}; took {_volume(taken)} in {len(taken)} groups (at most {rules.max_trajectories})"
    return Decision(True, words, tuple(group.group_id for group in taken))


def _take(groups: Sequence[Group], room: int) -> list[Group]:
    taken: list[Group] = []
    for group in sorted(groups, key=lambda group: (-group.age_s, group.group_id)):
        if group.waiting <= room:
            taken.append(group)
            room -= group.waiting
    return taken


def _volume(groups: Iterable[Group]) -> int:
    return sum(group.waiting for group in groups)
