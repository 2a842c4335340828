"""A score from what can be seen without a judge: profit, success of actions, completion, reward. Pure.

The formula is that of elizaOS's trajectory logger (plugin-trajectory-logger, ``reward_service``), which agents with
accounts and actions were trained by: a weighted mean, in -1 to 1, of

* 0.4: tanh(final profit and loss / scale), the scale being 500 there;
* 0.3: 2 x (share of actions that succeeded) - 1;
* 0.2: 1 when the trajectory completed, else -0.5;
* 0.1: the total reward, limited to -1 to 1.

What is unknown is left out together with its weight. There, a missing reward counted as 0; here it is left out too.
How it ended is always known, and tells nothing by itself: without any of the others there is no score.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from flywheel.events import Status
from flywheel.trajectory import Trajectory
from services.trainer.scoring.port import Group, GroupScores, Score, Unscored

WEIGHTS = MappingProxyType({"pnl": 0.4, "success": 0.3, "completion": 0.2, "reward": 0.1})
_NOT_COMPLETED = -0.5


class Heuristic:
    """The formula above; ``pnl_scale`` is the profit that counts for tanh(1) = 0.76."""

    name = "heuristic"

    def __init__(self, pnl_scale: float) -> None:
        self._pnl_scale = pnl_scale

    async def score(self, group: Group) -> GroupScores:
        """Score every trajectory of which more is known than how it ended."""
        found = GroupScores()
        for trajectory in group.trajectories:
            parts = components(trajectory, self._pnl_scale)
            if parts.keys() <= {"completion"}:
                found.unscored[trajectory.trajectory_id] = Unscored.NOTHING_TO_GO_BY
                continue
            weight = math.fsum(WEIGHTS[name] for name in parts)
            value = math.fsum(WEIGHTS[name] * part for name, part in parts.items()) / weight
            found.scores[trajectory.trajectory_id] = Score(max(-1.0, min(1.0, value)), self.name, parts)
        return found


def components(trajectory: Trajectory, pnl_scale: float) -> dict[str, float]:
    """Return what is known, each in -1 to 1."""
    parts = {"completion": 1.0 if trajectory.status is Status.COMPLETED else _NOT_COMPLETED}
    if trajectory.final_pnl is not None:
        parts["pnl"] = math.tanh(trajectory.final_pnl / pnl_scale)
    told = [step.action.success for step in trajectory.steps if step.action and step.action.success is not None]
    if told:
        parts["success"] = 2.0 * sum(told) / len(told) - 1.0
    if trajectory.total_reward is not None:
        parts["reward"] = max(-1.0, min(1.0, trajectory.total_reward))
    return parts
