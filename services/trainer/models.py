"""A model folder in the Hugging Face layout: load it to train, save what came of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flywheel.errors import PoisonError

#: Files that hold weights; all others of the parent are carried over byte for byte, the tokenizer above all.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.pt", "*.bin", "*.gguf")


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of ``folder``, in float32: what a low learning rate adds would vanish in 16 bits.

    Runs no code from the folder and reads nothing from elsewhere. Raises PoisonError ``bad_model`` when the
    folder holds no causal language model that transformers can load.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PoisonError("bad_model", f"{folder.name}: {type(error).__name__}: {error}") from error
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere; any known token will do.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise PoisonError("bad_model", f"{folder.name}: the tokenizer has neither a padding nor an end token")
    return model, tokenizer


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens at which the model's generation stops by itself."""
    generation = getattr(model.generation_config, "eos_token_id", None)
    several = generation if isinstance(generation, list) else [generation]
    return {int(end) for end in (*several, tokenizer.eos_token_id) if isinstance(end, int)}


def longest(model: PreTrainedModel) -> int | None:
    """Return the most tokens the model can read, None where its configuration sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def vocabulary(model: PreTrainedModel) -> int:
    """Return the number of token ids that the model has an embedding for."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[0]


def require_finite(model: PreTrainedModel) -> None:
    """Raise PoisonError ``diverged`` when a weight is not a finite number."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise PoisonError("diverged", f"training diverged: {name} holds values that are not finite")


def save(model: PreTrainedModel, parent: Path, folder: Path) -> None:
    """Write ``model`` into the empty ``folder``: its weights and configuration, and every other file as its
    parent had it.
    """
    shutil.copytree(parent, folder, ignore=shutil.ignore_patterns(*_WEIGHTS), dirs_exist_ok=True)
    model.save_pretrained(folder)
