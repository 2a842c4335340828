"""One training run: settings and rows to TRL's configuration, the run itself, and what was measured.

Every run starts with a fresh optimizer and the same seed, so that the same batch, parent and settings give
the same weights (bit for bit on one machine's CPU with the same number of threads), whichever jobs the
process did before.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig

from flywheel.errors import PoisonError
from flywheel.settings import TrainerSettings
from services.trainer.grpo import RecordedGRPOTrainer
from services.trainer.rows import Row

#: Optimizer steps done, of how many.
OnProgress = Callable[[int, int], None]

#: Our names for what TRL logs at every step.
_AVERAGED: Mapping[str, str] = {
    "loss": "loss",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "kl": "kl",
    "clip_ratio/region_mean": "clip_share",
    "cispo_clip_ratio": "clip_share",
    "sampling/logp_diff_mean": "logp_diff_mean",
    "sampling/logp_diff_max": "logp_diff_max",
    "sampling/is_weight_mean": "is_weight_mean",
    "sampling/is_weight_capped": "is_weight_capped",
}


def on_cpu(settings: TrainerSettings) -> bool:
    """Whether training runs on the CPU. Raises PoisonError ``no_device`` when CUDA is asked for and not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise PoisonError("no_device", "device is cuda, and torch sees no CUDA device")
    return settings.device == "cpu" or not torch.cuda.is_available()


def to_device(model: PreTrainedModel, settings: TrainerSettings) -> None:
    """Move ``model`` to where it will be trained. Raises PoisonError ``no_device``."""
    if not on_cpu(settings):
        model.to(torch.device("cuda"))  # type: ignore[arg-type] - transformers wraps it


def micro_batches(rows: int, settings: TrainerSettings) -> int:
    """Return how many micro-batches one pass takes: all rows, the last one padded, whole optimizer steps only."""
    wanted = math.ceil(rows / settings.micro_batch)
    whole = math.ceil(wanted / settings.accumulation) * settings.accumulation
    # TRL refuses a batch of a single sequence.
    return whole if whole * settings.micro_batch > 1 else whole * 2


def configuration(settings: TrainerSettings, rows: Sequence[Row], output: str) -> GRPOConfig:
    """Return TRL's configuration for one run over ``rows``. TRL's defaults assume a GPU and its own generation."""
    cpu = on_cpu(settings)
    passes = micro_batches(len(rows), settings)
    steps = passes // settings.accumulation * settings.iterations
    return GRPOConfig(
        output_dir=output,
        seed=settings.seed,
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        steps_per_generation=passes,
        num_iterations=settings.iterations,
        # Groups were formed when the rows were recorded. TRL only wants this to divide the batch.
        num_generations=passes * settings.micro_batch,
        learning_rate=settings.learning_rate,
        # A fresh optimizer takes its first steps as long as its last, however little it has seen. Without the rise, and
        # the fall towards the end, a good policy is worn down by noise, version after version.
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_share * steps),
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        loss_type=settings.loss_type,
        importance_sampling_level=settings.importance_level,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        beta=settings.beta,
        temperature=settings.temperature,
        # Only dr_grpo divides by it: the longest completion there is.
        max_completion_length=max(len(row.tokens) - row.prompt_length for row in rows),
        # Off on the CPU, where bf16 autocasts too and recomputing activations only costs time.
        use_cpu=cpu,
        bf16=not cpu,
        gradient_checkpointing=not cpu,
        dataloader_pin_memory=not cpu,
        shuffle_dataset=False,  # TRL shuffles within the generation batch, which is all rows
        save_strategy="no",
        report_to="none",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN loss must be seen
        disable_tqdm=True,
    )


class _Watch(TrainerCallback):
    """Reports each optimizer step and keeps what TRL logs of it."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.logs: list[Mapping[str, Any]] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._on_progress(state.global_step, state.max_steps)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.logs.append(dict(kwargs["logs"]))


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: TrainerSettings,
    on_progress: OnProgress,
) -> dict[str, float]:
    """Train ``model`` in place on ``rows`` and return the run's figures: averages over its steps, steps,
    tokens, seconds.

    Raises PoisonError ``diverged`` when a loss is not a finite number.
    """
    began = time.monotonic()
    watch = _Watch(on_progress)
    with tempfile.TemporaryDirectory(prefix="flywheel-train-") as output:
        trainer = RecordedGRPOTrainer(
            model=model,
            rows=rows,
            args=configuration(settings, rows, output),
            processing_class=tokenizer,
            is_mode=settings.is_mode,
            is_cap=settings.is_cap,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    figures = summary(watch.logs)
    if not math.isfinite(figures["loss"]):
        raise PoisonError("diverged", f"training diverged: loss {figures['loss']}")
    return {
        **figures,
        "steps": trainer.state.global_step,
        "tokens_trained": settings.iterations * sum(row.sampled_count for row in rows),
        "train_seconds": round(time.monotonic() - began, 3),
    }


def summary(logs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average what TRL logged step by step, under our names; also the entropy at the end."""
    figures: dict[str, float] = {}
    for theirs, ours in _AVERAGED.items():
        if values := [float(log[theirs]) for log in logs if log.get(theirs) is not None]:
            figures[ours] = round(fmean(values), 6)
            if ours == "entropy":
                figures["entropy_end"] = round(values[-1], 6)
    return figures
