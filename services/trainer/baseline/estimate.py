"""The running mean and variance of a scenario's rewards. Pure.

Every completed job first shrinks the weight of what was seen before by a decay, so that the estimate follows a policy
that gets better, then adds its batch's rewards with weight 1 each. Mean and sum of squares are brought up to date by
the update of West (1979, "Updating mean and variance estimates: an improved method", CACM 22 (9)) in the form for
whole batches of Chan, Golub and LeVeque (1979). The variance is the unbiased one for such weights, M2 / (W - W2/W), and
the effective number of rewards is Kish's W²/W2, with W the sum of the weights and W2 that of their squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

#: Added to the standard deviation, as TRL does, so that nearly uniform rewards do not explode.
EPSILON = 1e-4

#: Beyond it no float holds the squares.
_GREATEST = 1e100


class Observed(BaseModel):
    """The rewards of one scenario in one batch."""

    model_config = ConfigDict(frozen=True)

    count: int = Field(ge=1)
    mean: FiniteFloat
    m2: float = Field(ge=0, allow_inf_nan=False, description="sum of squared distances to the mean")

    @classmethod
    def of(cls, rewards: Iterable[float]) -> Observed:
        """Return what ``rewards`` (one at least) amount to."""
        values = list(rewards)
        mean = fmean(values)
        return cls(count=len(values), mean=mean, m2=math.fsum((value - mean) ** 2 for value in values))


class Baseline(BaseModel):
    """What is known of a scenario's rewards. ``weight`` and ``weight_sq``: sums of the weights and of their squares."""

    model_config = ConfigDict(frozen=True)

    weight: float = Field(default=0.0, ge=0)
    weight_sq: float = Field(default=0.0, ge=0)
    mean: FiniteFloat = 0.0
    m2: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def effective(self) -> float:
        """How many rewards of equal weight would tell as much."""
        return self.weight**2 / self.weight_sq if self.weight_sq else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation; 0 where fewer than two rewards cannot tell."""
        if self.effective <= 1:
            return 0.0
        return math.sqrt(self.m2 / (self.weight - self.weight_sq / self.weight))

    def after(self, observed: Observed, decay: float) -> Baseline:
        """Return the baseline once a batch has been seen."""
        before, n = self.weight * decay, observed.count
        weight = before + n
        apart = observed.mean - self.mean
        return Baseline(
            weight=weight,
            weight_sq=self.weight_sq * decay**2 + n,
            mean=self.mean + apart * n / weight,
            m2=self.m2 * decay + observed.m2 + apart**2 * before * n / weight,
        )

    def advantage(self, reward: float) -> float:
        """Return how much better ``reward`` is, in standard deviations.

        It goes no further than in a group with as many others: no value is more than (n-1)/√n deviations from the mean
        of n (Samuelson, 1968). 0 where the rewards so far had no spread: they give no measure.
        """
        if not (deviation := self.deviation):
            return 0.0
        n = self.effective + 1
        bound = (n - 1) / math.sqrt(n)
        return max(-bound, min(bound, (reward - self.mean) / (deviation + EPSILON)))


#: By scorer, whose scale the rewards have, and by scenario.
Baselines = Mapping[str, Mapping[str, Baseline]]
Observations = dict[str, dict[str, Observed]]


class Told(BaseModel):
    """What a job's batch tells the baselines, and how much of their weight it leaves."""

    model_config = ConfigDict(frozen=True)

    observed: Observations = Field(default_factory=dict)
    decay: float = Field(default=1.0, gt=0, le=1)


def tellable(reward: float) -> bool:
    """Whether a mean and a variance can be made of ``reward``."""
    return abs(reward) <= _GREATEST
