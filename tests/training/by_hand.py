"""The losses as the papers have them, written anew: one row at a time, no padding, no library but torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.trainer.rows import Row


@dataclass(frozen=True)
class Loss:
    """One of the losses, with its mode."""

    kind: str = "dapo"
    level: str = "token"
    low: float = 0.2
    high: float = 0.28
    mode: str = "decoupled"
    beta: float = 0.0
    cap: float = 2.0
    supervised_weight: float = 0.1
    temperature: float = 1.0


@dataclass(frozen=True)
class Pass:
    """What a pass over rows holds: for the divisors."""

    rows: float
    tokens: float
    longest: int

    @classmethod
    def of(cls, rows: Sequence[Row], steps: int) -> Pass:
        tokens = sum(sum(row.sampled) for row in rows)
        return cls(len(rows) / steps, tokens / steps, max(len(row.tokens) - row.sampled.index(1) for row in rows))


def logps(model: Any, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each sampled token: one row alone, no padding, plain log_softmax."""
    logits = (model(torch.tensor([row.tokens])).logits[0] / temperature).log_softmax(-1)
    return torch.stack([logits[i - 1, row.tokens[i]] for i, mine in enumerate(row.sampled) if mine])


def recorded(row: Row) -> torch.Tensor:
    return torch.tensor([p for p, mine in zip(row.logprobs, row.sampled, strict=True) if mine])


def step_loss(model: Any, start: dict[str, torch.Tensor], rows: Sequence[Row], whole: Pass, loss: Loss) -> torch.Tensor:
    """The loss of an optimizer step over ``rows``; ``start`` are the log-probabilities of the model at the start."""
    total = torch.zeros(())
    step_tokens = sum(sum(row.sampled) for row in rows)
    for row in rows:
        new = logps(model, row, loss.temperature)
        if row.supervised:
            per_token = -loss.supervised_weight * row.advantage * new
        else:
            per_token = policy(new, start[row.trajectory_id], row, loss)
        if loss.kind in ("grpo", "sapo"):
            total = total + per_token.mean() / whole.rows
        elif loss.kind == "luspo":
            total = total + per_token.sum() / whole.rows
        elif loss.kind == "dr_grpo":
            total = total + per_token.sum() / (whole.rows * whole.longest)
        elif loss.kind == "bnpo":
            total = total + per_token.sum() / step_tokens
        else:
            total = total + per_token.sum() / whole.tokens
    return total


def policy(new: torch.Tensor, start: torch.Tensor, row: Row, loss: Loss) -> torch.Tensor:
    """The loss of each token that has a ratio."""
    mu = recorded(row)
    old = start if loss.mode == "decoupled" else mu
    advantage = torch.full_like(start, row.advantage)
    if loss.mode == "decoupled":
        advantage = advantage * (start - mu).exp().clamp(max=loss.cap)
    log_ratio = new - old
    if loss.level == "sequence":
        log_ratio = log_ratio.mean().expand_as(log_ratio)
    ratio = log_ratio.exp()
    if loss.kind == "cispo":
        per_token = -ratio.clamp(max=loss.high).detach() * advantage * new
    elif loss.kind == "sapo":
        heat = torch.where(advantage > 0, 1.0, 1.05)
        per_token = -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * advantage
    elif loss.kind == "vespo":
        log_w = (new - old).sum().detach().clamp(math.log(1e-8), 20)
        k, heat = torch.where(advantage >= 0, 2.0, 3.0), torch.where(advantage >= 0, 3.0, 2.0)
        per_token = -(heat + k * log_w - heat * log_w.exp()).exp() * advantage * new
    else:
        per_token = -torch.min(ratio * advantage, ratio.clamp(1 - loss.low, 1 + loss.high) * advantage)
    return per_token + loss.beta * ratio * ((start - new).exp() - (start - new) - 1)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of what is trained."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
