"""Scores by what the environment said: the recorded reward, or a weighted sum of its components. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flywheel.exact import rounded_sum
from services.trainer.scoring.port import Group, GroupScores, Score, Unscored

#: Name under which a weight takes the recorded total, beside the components.
TOTAL = "total_reward"


class Recorded:
    """The recorded total reward, as it is."""

    name = "recorded"

    async def score(self, group: Group) -> GroupScores:
        """Score every trajectory that has a reward."""
        found = GroupScores()
        for trajectory in group.trajectories:
            if trajectory.total_reward is None:
                found.unscored[trajectory.trajectory_id] = Unscored.NO_REWARD
            else:
                found.scores[trajectory.trajectory_id] = Score(trajectory.total_reward, self.name)
        return found


class Weighted:
    """A weighted sum of reward components, ``total_reward`` among them where it has a weight.

    A trajectory that lacks a component which has a weight gets no score: taking it for 0 would be a guess. Neither does
    one whose sum no number can hold: nothing can be compared with it.
    """

    name = "weighted"

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    async def score(self, group: Group) -> GroupScores:
        """Score every trajectory that has all components."""
        found = GroupScores()
        for trajectory in group.trajectories:
            have = dict(trajectory.reward_components)
            if trajectory.total_reward is not None:
                have[TOTAL] = trajectory.total_reward
            if any(name not in have for name in self._weights):
                found.unscored[trajectory.trajectory_id] = Unscored.MISSING_COMPONENT
                continue
            parts = {name: weight * have[name] for name, weight in self._weights.items()}
            value = rounded_sum(parts.values()) if all(map(math.isfinite, parts.values())) else math.nan
            if math.isfinite(value):
                found.scores[trajectory.trajectory_id] = Score(value, self.name, parts)
            else:
                found.unscored[trajectory.trajectory_id] = Unscored.NOT_FINITE
        return found
