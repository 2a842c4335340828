"""What an optimizer step's sums are divided by, and the loss of what is imitated.

With ℓ the loss of a token with a ratio (TRL's), N the tokens and R the rows of a step *on average over the pass*, n a
row's tokens and L the longest completion, a step's loss is

* Σ ℓ / N  (dapo, cispo, vespo), the same with the step's own tokens instead of N (bnpo),
* Σ_rows (Σ ℓ / n) / R  (grpo, sapo), Σ ℓ / R  (luspo), Σ ℓ / (R L)  (dr_grpo).

The average, because a step that happens to hold little must not count as much as one that holds a lot: so the mean of a
pass's gradients is the gradient of the whole batch.

A *supervised* token has no ratio, since nobody knows how likely it was when it was sampled. It is imitated where it was
rewarded: ℓ = -w max(A, 0) log π, self-imitation learning (Oh et al., 2018, arXiv:1806.05635) with the group's mean in
the place of the value function. Like rejection sampling fine-tuning (Yuan et al., 2023, arXiv:2308.01825) it never
learns from failures, whose likelihood would fall without bound if nothing clipped it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from flywheel.settings import TrainerSettings
from services.trainer.rows import Row
from services.trainer.schedule import Limits, steps_of_pass


def limits(settings: TrainerSettings, processes: int) -> Limits:
    """Return how much is computed at once under ``settings``."""
    return Limits(
        step_rows=settings.micro_batch * settings.accumulation,
        micro_rows=settings.micro_batch,
        micro_tokens=settings.micro_tokens,
        processes=processes,
    )


def longest_completion(rows: Iterable[Row]) -> int:
    """Return L: tokens from the first sampled one on."""
    return max(len(row.tokens) - row.prompt_length for row in rows)


@dataclass(frozen=True, slots=True)
class Objective:
    """How a step's loss is put together. ``rows`` and ``tokens``: those of a step, on average over the pass."""

    loss_type: str
    rows: float
    tokens: float
    longest: int
    supervised_weight: float

    @classmethod
    def of(cls, rows: Sequence[Row], settings: TrainerSettings) -> Objective:
        """Return the objective for passes over ``rows``."""
        steps = steps_of_pass(len(rows), limits(settings, 1))
        tokens = sum(row.sampled_count for row in rows)
        return cls(
            settings.loss_type, len(rows) / steps, tokens / steps, longest_completion(rows), settings.supervised_weight
        )

    def scale(self, policy: torch.Tensor, step_tokens: int) -> torch.Tensor | float:
        """Return what TRL's mean over a micro-batch is multiplied with to be its part of the step's loss. ``policy``
        is the micro-batch's mask; TRL itself divides by N where N is the divisor.
        """
        if self.loss_type in ("grpo", "sapo", "luspo", "dr_grpo"):
            return policy.size(0) / self.rows
        if self.loss_type == "bnpo":
            return policy.sum().clamp(min=1) / step_tokens
        return 1.0

    def supervised(
        self, logps: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, step_tokens: int
    ) -> torch.Tensor:
        """Return a micro-batch's part of the supervised loss. ``logps`` and ``mask``: (rows, tokens); ``advantages``:
        (rows), none below 0 where the mask is set.
        """
        loss = -(logps * mask).sum(1) * advantages
        if self.loss_type in ("grpo", "sapo"):
            loss = loss / mask.sum(1).clamp(min=1)
        return self.supervised_weight * loss.sum() / self._divisor(step_tokens)

    def _divisor(self, step_tokens: int) -> float:
        if self.loss_type in ("grpo", "sapo", "luspo"):
            return self.rows
        if self.loss_type == "dr_grpo":
            return self.rows * self.longest
        return step_tokens if self.loss_type == "bnpo" else self.tokens
