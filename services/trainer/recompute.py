"""Log-probabilities that were not recorded, by the model that sampled the tokens."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from services.trainer.rows import Row


@torch.no_grad()
def fill(model: PreTrainedModel, rows: list[Row], temperature: float) -> None:
    """Put the log-probabilities after ``temperature`` in the place of the unknown ones of ``rows``.

    ``model`` must be the policy that sampled those tokens. A token's log-probability depends on what stands before it
    in its row alone, and that is what the model was fed.
    """
    was_training = model.training
    model.eval()
    for row in rows:
        if positions := row.unknown:
            for position, value in zip(positions, _logprobs(model, row.tokens, positions, temperature), strict=True):
                row.logprobs[position] = value
    model.train(was_training)


def _logprobs(model: PreTrainedModel, tokens: list[int], positions: list[int], temperature: float) -> list[float]:
    ids = torch.tensor([tokens], device=model.device)
    at = torch.tensor(positions, device=model.device)
    # Scores of a long prompt over a large vocabulary are gigabytes: those before the first position are not needed.
    first = positions[0] - 1
    takes = inspect.signature(model.forward).parameters
    keep: dict[str, int] = {"logits_to_keep": len(tokens) - first} if "logits_to_keep" in takes else {}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **keep).logits[0]
    logits = logits[at - 1 - (first if keep else 0)]
    scores = torch.log_softmax(logits.float() / temperature, dim=-1)
    return scores.gather(1, ids[0, at].unsqueeze(1)).squeeze(1).tolist()
