"""Low-rank adapters (LoRA; Hu et al., 2021, arXiv:2106.09685): put on before training, merged into the model after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, set_seed

from flywheel.errors import FatalError
from flywheel.settings import TrainerSettings

_ALL = "all-linear"


def put_on(model: PreTrainedModel, settings: TrainerSettings) -> PreTrainedModel | PeftModel:
    """Return what is trained under ``settings``: ``model`` itself, or the adapters on it, with ``model`` frozen.

    New adapters change nothing yet, and the same seed makes the same. Their weights are float32, whatever the model's
    are. Raises FatalError when the settings name modules that the model does not have, or the head.
    """
    if settings.tuning == "full":
        return model
    chosen = f"FLYWHEEL_TRAINER_LORA_TARGETS={settings.lora_targets}"
    named = [target.strip() for target in settings.lora_targets.split(",") if target.strip()]
    if named != [_ALL] and (missing := [target for target in named if not _has(model, target)]):
        raise FatalError(f"{chosen}: {type(model).__name__} has no {', '.join(missing)}; {_linear(model)}")
    configuration = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type] - a scale, of which halves are as good
        lora_dropout=settings.lora_dropout,
        target_modules=_ALL if named == [_ALL] else named,
        task_type="CAUSAL_LM",
    )
    set_seed(settings.seed)
    try:
        wrapped: Any = get_peft_model(model, configuration)
    except ValueError as error:
        raise FatalError(f"{chosen}: {error}; {_linear(model)}") from error
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise FatalError(
            f"{chosen} has the language model head, whose weights are read without calling it: leave it out"
        )
    return wrapped


def save(model: PeftModel, parent: Path, folder: Path) -> None:
    """Write the adapter alone into ``folder``, as PEFT loads it."""
    model.peft_config["default"].base_model_name_or_path = parent.name
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card, with nothing filled in


def merge(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Return ``model`` with the saved adapter's product added to its weights. It is changed in place.

    Rounding is to be the caller's alone: ``model`` should be float32, of the weights that the adapter was trained on.
    """
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


def _has(model: PreTrainedModel, target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules())


def _linear(model: PreTrainedModel) -> str:
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return f"its linear layers are {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}"
