"""What a scorer is: one group in, a score for each trajectory, or why there is none. Pure.

A score says how it came about. A trajectory that a scorer cannot judge is named with the reason: it gets no score at
all, which is not a score of 0. All scores of one group come from one scorer, because they are compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from flywheel.trajectory import Trajectory


class Unscored(StrEnum):
    """Why a trajectory has no score."""

    NO_REWARD = "no_reward"
    MISSING_COMPONENT = "missing_component"
    NOT_FINITE = "not_finite"
    NOTHING_TO_GO_BY = "nothing_to_go_by"
    NOTHING_TO_COMPARE = "nothing_to_compare"
    NO_TRAINABLE_CALLS = "no_trainable_calls"


class JudgeFailure(StrEnum):
    """Why a judge gave no scores for a group."""

    DOWN = "judge_down"
    REFUSED = "judge_refused"
    UNUSABLE = "judge_unusable"
    OUT_OF_TIME = "out_of_time"
    BATCH_BUDGET = "batch_budget"
    DAY_BUDGET = "day_budget"
    MIXED_SCENARIOS = "mixed_scenarios"


class JudgeFailed(Exception):  # noqa: N818 - not an error of ours: the fallback takes over
    """The judge gave no usable scores for a group."""

    def __init__(self, reason: JudgeFailure, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of one trajectory, over all passes."""

    model: str
    prompt_hash: str
    content_key: str
    rank: int
    normalised: float
    reasoning: tuple[str, ...]
    calls: tuple[str, ...]
    cached: bool


@dataclass(frozen=True, slots=True)
class Score:
    """What a trajectory is worth, by whom, made of what."""

    value: float
    scorer: str
    components: Mapping[str, float] = field(default_factory=dict)
    judged: Judged | None = None
    fallback: JudgeFailure | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Attempts that are compared with each other."""

    group_id: str
    trajectories: Sequence[Trajectory]


@dataclass(slots=True)
class GroupScores:
    """Every trajectory of the group, by id, in exactly one of the two."""

    scores: dict[str, Score] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)
    fallback: JudgeFailure | None = None


class Scorer(Protocol):
    """Scores one group at a time; may be asked for several at once."""

    name: str

    async def score(self, group: Group) -> GroupScores:
        """Return a score, or the reason for none, for each trajectory. Raises JudgeFailed."""
        ...


class WithFallback:
    """A scorer that may fail, and another that then scores the whole group; without another the group has no scores."""

    def __init__(self, scorer: Scorer, fallback: Scorer | None) -> None:
        self.name = scorer.name
        self._scorer = scorer
        self._fallback = fallback

    async def score(self, group: Group) -> GroupScores:
        """Return the scores of the one, or of the other with the reason why it was asked. Never raises JudgeFailed."""
        try:
            return await self._scorer.score(group)
        except JudgeFailed as failed:
            if self._fallback is None:
                unscored = {t.trajectory_id: str(failed.reason) for t in group.trajectories}
                return GroupScores(unscored=unscored, fallback=failed.reason)
            found = await self._fallback.score(group)
            scores = {
                name: Score(score.value, score.scorer, score.components, fallback=failed.reason)
                for name, score in found.scores.items()
            }
            return GroupScores(scores, found.unscored, failed.reason)
