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
from peft import PeftModel
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

from flywheel.errors import FatalError, PoisonError
from flywheel.settings import TrainerSettings
from services.trainer import schedule
from services.trainer.grpo import DRAWN, RecordedGRPOTrainer
from services.trainer.objective import limits, longest_completion
from services.trainer.rows import Row
from services.trainer.schedule import steps_of_pass

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
    "supervised/nll": "supervised_nll",
}


def on_cpu(settings: TrainerSettings) -> bool:
    """Whether training runs on the CPU."""
    return settings.device == "cpu" or not torch.cuda.is_available()


def require_machine(settings: TrainerSettings) -> None:
    """Raise FatalError when the settings ask for what this machine does not have: no job could be done."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cuda" and not devices:
        raise FatalError("FLYWHEEL_TRAINER_DEVICE is cuda, and torch sees no CUDA device")
    if not on_cpu(settings) and settings.processes > devices:
        raise FatalError(f"FLYWHEEL_TRAINER_PROCESSES is {settings.processes}, and torch sees {devices} CUDA devices")
    if settings.precision == "bfloat16" and not on_cpu(settings) and not torch.cuda.is_bf16_supported():
        raise FatalError("FLYWHEEL_TRAINER_PRECISION is bfloat16, which this GPU does not have: float32 or auto")


def to_device(model: PreTrainedModel, settings: TrainerSettings) -> None:
    """Move ``model`` to where it will be trained."""
    if not on_cpu(settings):
        model.to(torch.device("cuda"))  # type: ignore[arg-type] - transformers wraps it


def in_bfloat16(settings: TrainerSettings) -> bool:
    """Whether the arithmetic is bfloat16's. Weights that are trained are float32 beside it."""
    if settings.precision == "auto":
        return not on_cpu(settings) and torch.cuda.is_bf16_supported()
    return settings.precision == "bfloat16"


def frozen_dtype(settings: TrainerSettings) -> torch.dtype:
    """Return what the parent is loaded as: float32 where its weights are trained, half of that under adapters."""
    return torch.bfloat16 if settings.tuning == "lora" and in_bfloat16(settings) else torch.float32


def configuration(settings: TrainerSettings, rows: Sequence[Row], output: str) -> GRPOConfig:
    """Return TRL's configuration for one run over ``rows``. TRL's defaults assume a GPU and its own generation."""
    cpu = on_cpu(settings)
    steps = steps_of_pass(len(rows), limits(settings, 1)) * settings.iterations
    checkpointing = not cpu if settings.gradient_checkpointing == "auto" else settings.gradient_checkpointing == "on"
    args = GRPOConfig(
        output_dir=output,
        seed=settings.seed,
        max_steps=steps,
        # To TRL's loop, a step is one batch of two that mean nothing. What is computed then says our own schedule.
        per_device_train_batch_size=DRAWN,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        num_generations=DRAWN,
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
        temperature=settings.temperature,
        use_bias_correction_kl=True,  # the KL times the ratio: its gradient is that of the KL of what π samples
        # Only dr_grpo divides by it: the longest completion there is.
        max_completion_length=longest_completion(rows),
        # A ratio between two draws of dropout would measure the dropout. Only adapters may be asked to have it.
        disable_dropout=settings.tuning == "full" or settings.lora_dropout == 0,
        # Balancing experts is a term of pretraining; it has no place in the step's sum.
        router_aux_loss_coef=0.0,
        use_cpu=cpu,
        bf16=in_bfloat16(settings),
        activation_checkpointing=checkpointing,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN loss must be seen
        disable_tqdm=True,
    )
    # Several GPUs in one process: Trainer would copy the model to all of them at every step. One process, one GPU.
    args._n_gpu = min(args.n_gpu, 1)
    return args


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
    model: PreTrainedModel | PeftModel,
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
            settings=settings,
            args=configuration(settings, rows, output),
            processing_class=tokenizer,
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
        **padding(rows, settings, trainer.args.world_size),
        "train_seconds": round(time.monotonic() - began, 3),
    }


def padding(rows: Sequence[Row], settings: TrainerSettings, processes: int) -> dict[str, float]:
    """Return how many tokens the passes over ``rows`` computed: those of the rows, and with the padding."""
    lengths = [len(row.tokens) for row in rows]
    bounds = limits(settings, processes)
    passes = [schedule.plan(lengths, bounds, settings.seed, number) for number in range(settings.iterations)]
    real = settings.iterations * sum(lengths)
    padded = sum(schedule.padded(step, lengths) for steps in passes for step in steps)
    return {"tokens_real": real, "tokens_padded": padded, "padding_share": round(1 - real / padded, 4)}


def summary(logs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average what TRL logged step by step, under our names; also the entropy at the end."""
    figures: dict[str, float] = {}
    for theirs, ours in _AVERAGED.items():
        if values := [float(log[theirs]) for log in logs if log.get(theirs) is not None]:
            figures[ours] = round(fmean(values), 6)
            if ours == "entropy":
                figures["entropy_end"] = round(values[-1], 6)
    return figures
