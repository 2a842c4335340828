"""TRL's GRPO on recorded trajectories: generation is replaced by what was recorded, the rest is TRL's.

Losses, clipping, KL, entropy, optimizer, adapters, devices and checkpoints stay TRL's own. Private methods of its are
overridden, so its version is pinned and ``tests/training/test_trl_contract.py`` fails when what we rely on moves.

How the recorded log-probabilities μ of the sampled tokens enter, with π the model in training and π₀ the
model at the start:

* ``behavior``: the clipped ratio is π/μ. The trust region lies around the policy that played.
* ``decoupled``: the clipped ratio is π/π₀, and each token's advantage is weighted by π₀/μ, truncated at
  ``is_cap``. The trust region lies around the model that training starts from, which older play cannot drag
  back.

Which rows make a step and how it is computed says :mod:`services.trainer.schedule`, what it is divided by
:mod:`services.trainer.objective`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from trl.trainer import utils as trl_utils
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from flywheel.settings import TrainerSettings
from services.trainer import schedule
from services.trainer.batching import MicroBatch, Packed
from services.trainer.objective import Objective, limits
from services.trainer.rows import Row
from services.trainer.schedule import Share, Step

#: Indices that a process draws for a step. They mean nothing; TRL takes no batch of one.
DRAWN = 2

_SUPERVISED_NLL = "supervised/nll"

_uses_triton: Callable[[torch.device], bool] = getattr(trl_utils, "_use_triton")  # noqa: B009 - private


def _scores_only_labels(device: torch.device) -> bool:
    """Have the language model head compute the labelled positions only, on a CPU as on a GPU.

    Where there is no Triton, TRL computes all others too and throws them away, to spare other devices recompilation.
    """
    return device.type == "cpu" or _uses_triton(device)


setattr(trl_utils, "_use_triton", _scores_only_labels)  # noqa: B010 - private


def _no_reward(prompts: Sequence[Any], **_: Any) -> list[float | None]:
    """Satisfy TRL's constructor, which wants a reward function; rewards were recorded and this one is never
    called.
    """
    raise AssertionError("recorded rows carry their advantages")


class RecordedGRPOTrainer(GRPOTrainer):
    """Trains on ``rows`` (with advantages). Groups may have any size; a pass has every row once.

    TRL's loop counts optimizer steps; what it draws from its data loader means nothing. ``_buffered_inputs`` are the
    log-probabilities of each row's sampled tokens under π₀. They are computed before the first step, unless they are
    there already: a model that has been trained cannot tell them any more.
    """

    def __init__(self, *, rows: Sequence[Row], settings: TrainerSettings, args: GRPOConfig, **kwargs: Any) -> None:
        self.rows = rows
        self._settings = settings
        self._packed = [Packed.of(row) for row in rows]
        self._objective = Objective.of(rows, settings)
        self._supervises = any(row.supervised for row in rows)
        self.plan = lru_cache(maxsize=1)(self._plan)
        drawn = Dataset.from_dict({"index": list(range(DRAWN * args.world_size * args.max_steps))})
        super().__init__(args=args, reward_funcs=[_no_reward], train_dataset=drawn, **kwargs)
        # Not by args: TRL would load the reference a second time. It is the model at the start, and π₀ is at hand.
        self.beta = settings.beta
        self.current_gradient_accumulation_steps = 1
        self._scored = self._logps = torch.empty(0)

    def _plan(self, number: int) -> list[Step]:
        lengths = [len(row.tokens) for row in self.rows]
        return schedule.plan(lengths, limits(self._settings, self.args.world_size), self._settings.seed, number)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)  # type: ignore[arg-type]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradient of one optimizer step, and return its loss."""
        began = time.perf_counter()
        if self._buffered_inputs is None:
            self._buffered_inputs = self._score_start()
        number, at = divmod(self.state.global_step, len(self.plan(0)))
        step = self.plan(number)[at]
        step_tokens = sum(self._tokens(step.rows).values())
        loss = torch.zeros((), device=self.args.device)
        averages = _Averages(self._metrics["train"])
        for i, shares in enumerate(step.rounds, 1):
            micro = {"share": shares[self.args.process_index], "step_tokens": step_tokens}
            # Processes exchange gradients once a step, with the last micro-batch.
            with nullcontext() if i == len(step.rounds) else self.accelerator.no_sync(model):
                loss += super().training_step(model, micro, None)
            averages.take(self._tokens([row for share in shares for row in share]))
        averages.put_back()
        self._metrics["train"]["step_time"] = [time.perf_counter() - began]
        return loss

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        share: Share = generation_batch["share"]
        batch = self._batch(share)
        assert self._buffered_inputs is not None, "π₀ was scored before the first step"
        start = batch.spread([self._buffered_inputs[row] for row in share])
        recorded = batch.spread([self._packed[row].logprobs for row in share])
        decoupled = self._settings.is_mode == "decoupled"
        weights = batch.advantages.unsqueeze(1)
        if decoupled:
            weights = weights * torch.where(batch.policy, start - recorded, 0.0).exp().clamp(max=self._settings.is_cap)
        return {
            # All but the first token are "completion": which of them count says the mask.
            "prompt_ids": batch.tokens[:, :1],
            "prompt_mask": batch.known[:, :1],
            "completion_ids": batch.tokens[:, 1:],
            "completion_mask": batch.known[:, 1:],
            "tool_mask": batch.policy.long(),
            "advantages": weights,
            "old_per_token_logps": start if decoupled else recorded,
            "ref_per_token_logps": start,
            "num_items_in_batch": torch.tensor(self._objective.tokens * self.args.world_size, device=self.args.device),
            "batch": batch,
            "step_tokens": generation_batch["step_tokens"],
        }

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        batch, step_tokens = inputs["batch"], inputs["step_tokens"]
        self._scored = batch.scored
        with self._extremes_of_its_own():
            loss = super()._compute_loss(model, inputs) * self._objective.scale(batch.policy, step_tokens)
        if self._supervises:
            mask = batch.supervised
            loss = loss + self._objective.supervised(self._logps, mask, batch.advantages, step_tokens)
            sums = torch.stack([-(self._logps.detach() * mask).sum(), mask.sum()])
            nll, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()  # type: ignore[union-attr]
            self._metrics["train"][_SUPERVISED_NLL].append(nll / max(tokens, 1))
        return loss * self.args.world_size  # gradients are averaged over the processes, and ours are parts of a sum

    @contextmanager
    def _extremes_of_its_own(self) -> Iterator[None]:
        """Keep TRL from gathering what it logs of single rows: the least and the greatest clip share, which nobody
        reads. The processes have different numbers of rows, and that only works with equal ones.
        """
        accelerator: Any = self.accelerator
        accelerator.gather = lambda tensor: tensor
        try:
            yield
        finally:
            del accelerator.gather

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int,
        batch_size: int | None = None, compute_entropy: bool = False, compute_aux_loss: bool = False, **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
        """Score the sampled tokens alone, 0 elsewhere: the head would work for nothing on all others."""
        labels = torch.full_like(input_ids, -100)
        labels[:, 1:] = torch.where(self._scored, input_ids[:, 1:], -100)
        with self.accelerator.autocast():
            out = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
        self._logps = out.log_probs
        return out.log_probs, out.entropy if compute_entropy else None, None

    @torch.no_grad()
    def _score_start(self) -> list[torch.Tensor]:
        """Return the log-probabilities of each row's sampled tokens under the model as it is now, without dropout."""
        model: Any = self.model
        model.eval()
        scored: dict[int, torch.Tensor] = {}
        # In the very micro-batches of the first pass: there the ratio is exactly 1, whatever the precision.
        for share in (shares[self.args.process_index] for step in self.plan(0) for shares in step.rounds):
            batch = self._batch(share)
            self._scored = batch.scored
            logps, _, _ = self._get_per_token_logps_and_entropies(model, batch.tokens, batch.known, 0)
            scored |= {row: one[mask].cpu() for row, one, mask in zip(share, logps, batch.scored, strict=False)}
        for others in gather_object([scored]) if self.args.world_size > 1 else []:
            scored |= others
        start = [scored[row] for row in range(len(self.rows))]
        self._note_drift(start)
        return start

    def _batch(self, share: Share) -> MicroBatch:
        filler: Any = self._tokenizer.pad_token_id
        return MicroBatch.of([self._packed[row] for row in share], filler, self.args.device)

    def _tokens(self, rows: Sequence[int]) -> dict[bool, int]:
        """Return how many tokens of ``rows`` are supervised (True) and how many have a ratio (False)."""
        counts = {True: 0, False: 0}
        for row in rows:
            counts[self._packed[row].supervised] += len(self._packed[row].logprobs)
        return counts

    def _note_drift(self, start: Sequence[torch.Tensor]) -> None:
        """Log how far the model at the start is from the policies that played, over the tokens with a ratio."""
        drifts = [
            one - packed.logprobs for one, packed in zip(start, self._packed, strict=True) if not packed.supervised
        ]
        if not drifts:
            return
        drift = torch.cat(drifts)
        weight = drift.exp()
        metrics = self._metrics["train"]
        metrics["sampling/logp_diff_mean"].append(drift.abs().mean().item())
        metrics["sampling/logp_diff_max"].append(drift.abs().max().item())
        metrics["sampling/is_weight_mean"].append(weight.mean().item())
        metrics["sampling/is_weight_capped"].append((weight > self._settings.is_cap).float().mean().item())


class _Averages:
    """Weighs what TRL logs of each micro-batch by its tokens: a step's figures are means over the step's tokens."""

    def __init__(self, logged: defaultdict[str, list[float]]) -> None:
        self._logged = logged
        self._before = dict(logged)
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        logged.clear()

    def take(self, tokens: Mapping[bool, int]) -> None:
        """Take what was logged of a micro-batch with so many supervised (True) and other (False) tokens."""
        for name, values in self._logged.items():
            weight = tokens[name == _SUPERVISED_NLL]
            if weight and math.isfinite(values[-1]):
                self._sums[name][0] += weight * values[-1]
                self._sums[name][1] += weight
        self._logged.clear()

    def put_back(self) -> None:
        """Log the means, after what was logged before."""
        self._logged.update(self._before)
        for name, (total, weight) in self._sums.items():
            self._logged[name].append(total / weight)
