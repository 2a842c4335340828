"""Group-relative advantages for groups of any size. Pure.

A trajectory is compared with the others of its group: reward minus the group's mean, over the group's sample standard
deviation. It is the trajectory that has an advantage, not the row: one that was forked into five rows counts once.
A group whose rewards are all equal cannot be compared: its advantages are 0.

A group of one is compared with the running mean of its scenario's rewards, as it was before this batch, where that has
seen enough; else its advantage is 0. What a baseline is made of does not depend on the act that it is held against, so
the gradient stays unbiased however far it lags behind (Williams, 1992).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from types import MappingProxyType

from services.trainer.baseline.estimate import EPSILON, Baseline, Baselines, Observations, Observed, tellable

#: Scorers whose scores say how good an attempt is among those that it was shown with, and nothing beside them.
RELATIVE = frozenset({"ruler"})


@dataclass(frozen=True, slots=True)
class Scored:
    """A trajectory's place in the comparison, and who gave it its reward."""

    group_id: str
    reward: float
    scenario: str = ""
    scorer: str = "recorded"

    @property
    def measurable(self) -> bool:
        """Whether its reward can be held against those of other groups: of its scenario, by the same scorer."""
        return bool(self.scenario) and self.scorer not in RELATIVE and tellable(self.reward)


def group_advantages(
    scored: Mapping[str, Scored], baselines: Baselines = MappingProxyType({}), min_weight: float = 0.0
) -> tuple[dict[str, float], Counter[str]]:
    """Return each trajectory's advantage, and how many groups were compared, had no spread, or were singletons: held
    against the baseline of their scenario, or not comparable.

    ``baselines`` that have seen fewer rewards, by their effective number, than ``min_weight`` do not count.
    """
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for trajectory_id, one in scored.items():
        groups[one.group_id][trajectory_id] = one.reward
    counts: Counter[str] = Counter(compared=0, singletons=0, singletons_by_baseline=0, without_spread=0)
    advantages: dict[str, float] = {}
    for rewards in groups.values():
        if len(rewards) == 1:
            ((trajectory_id, reward),) = rewards.items()
            baseline = _baseline(scored[trajectory_id], baselines, min_weight)
            counts["singletons_by_baseline" if baseline else "singletons"] += 1
            advantages[trajectory_id] = baseline.advantage(reward) if baseline else 0.0
            continue
        mean, spread = fmean(rewards.values()), stdev(rewards.values())
        if spread == 0.0:
            counts["without_spread"] += 1
        else:
            counts["compared"] += 1
        for trajectory_id, reward in rewards.items():
            advantages[trajectory_id] = (reward - mean) / (spread + EPSILON) if spread else 0.0
    return advantages, counts


def held_against(
    scored: Mapping[str, Scored], baselines: Baselines, min_weight: float
) -> dict[str, dict[str, Baseline]]:
    """Return the baselines that singletons are compared with, for the lineage of what comes of it."""
    sizes = Counter(one.group_id for one in scored.values())
    used: dict[str, dict[str, Baseline]] = defaultdict(dict)
    for one in scored.values():
        if sizes[one.group_id] == 1 and (found := _baseline(one, baselines, min_weight)):
            used[one.scorer][one.scenario] = found
    return dict(used)


def observed(scored: Mapping[str, Scored]) -> Observations:
    """Return what the batch's rewards tell the baselines: every trajectory once, whatever its group's size."""
    rewards: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in scored.values():
        if one.measurable:
            rewards[one.scorer][one.scenario].append(one.reward)
    return {
        scorer: {scenario: Observed.of(values) for scenario, values in sorted(mine.items())}
        for scorer, mine in sorted(rewards.items())
    }


def _baseline(one: Scored, baselines: Baselines, min_weight: float) -> Baseline | None:
    """Return the baseline that a singleton is held against, None where there is none that can tell."""
    found = baselines.get(one.scorer, {}).get(one.scenario) if one.measurable else None
    return found if found and found.effective >= min_weight and found.deviation > 0 else None
