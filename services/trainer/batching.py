"""Rows as tensors: made once, padded to a micro-batch when their turn comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from services.trainer.rows import Row

#: Where there is one position per row, TRL takes its figures to be those of whole rows, padding included.
_SHORTEST = 3


@dataclass(frozen=True, slots=True)
class Packed:
    """One row. ``tokens`` and ``scored`` are as long as it is; ``logprobs`` are those of the scored tokens alone."""

    tokens: torch.Tensor
    scored: torch.Tensor
    logprobs: torch.Tensor
    advantage: float
    supervised: bool

    @classmethod
    def of(cls, row: Row) -> Packed:
        """Pack a row. What has no ratio has no log-probabilities either: they are 0."""
        scored = torch.tensor(row.sampled, dtype=torch.bool)
        logprobs = torch.tensor(row.logprobs, dtype=torch.float32)[scored]
        return cls(torch.tensor(row.tokens), scored, logprobs, row.advantage, row.supervised)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows padded on the right, so that every token keeps the position it was sampled at.

    Shapes: ``tokens`` and ``known`` (rows, length); ``scored``, ``policy`` and ``supervised``, which parts ``scored``
    in two, (rows, length - 1): whether the token *after* each position counts; ``advantages`` (rows).
    """

    tokens: torch.Tensor
    known: torch.Tensor
    scored: torch.Tensor
    policy: torch.Tensor
    supervised: torch.Tensor
    advantages: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Packed], filler: int, device: torch.device) -> MicroBatch:
        """Pad ``rows`` with the token ``filler``. Of no rows it is a sequence of which nothing counts."""
        nothing = Packed(
            torch.full((_SHORTEST,), filler),
            torch.zeros(_SHORTEST, dtype=torch.bool),
            torch.empty(0),
            0.0,
            supervised=False,
        )
        packed = rows or [nothing]
        tokens = pad_sequence([row.tokens for row in packed], batch_first=True, padding_value=filler)
        missing = (0, max(0, _SHORTEST - tokens.size(1)))
        known = pad_sequence([torch.ones_like(row.tokens) for row in packed], batch_first=True)
        scored = pad_sequence([row.scored for row in packed], batch_first=True)[:, 1:]
        imitated = torch.tensor([row.supervised for row in packed]).unsqueeze(1)
        advantages = torch.tensor([row.advantage for row in packed], dtype=torch.float32)
        tokens, known, scored = pad(tokens, missing, value=filler), pad(known, missing), pad(scored, missing)
        made = (tokens, known, scored, scored & ~imitated, scored & imitated, advantages)
        return cls(*(tensor.to(device) for tensor in made))

    def spread(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return ``values``, one tensor of its scored tokens a row, in their places; 0 elsewhere."""
        spread = torch.zeros(self.scored.shape, device=self.scored.device)
        if values:
            spread[self.scored] = torch.cat(list(values)).to(spread.device)
        return spread
