"""A model folder in the Hugging Face layout: load it to train, save what came of it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flywheel.errors import PoisonError
from services.trainer import adapters

#: Files that hold weights; all others of the parent are carried over byte for byte, the tokenizer above all.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.pt", "*.bin", "*.gguf")

#: Where a model's artifact has the adapter that was merged into it.
ADAPTER = "adapter"

SaveDtype = Literal["parent", "float32", "bfloat16"]

#: What weights may be stored as and trained from, by safetensors' names.
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer of ``folder``. Weights that are trained must be float32: bfloat16 has 8 significant
    bits, so a step of less than a 512th of a weight, as each of 1e-5 is to one of 0.01, would be rounded off.

    Runs no code from the folder and reads nothing from elsewhere. Raises PoisonError ``bad_model`` when the
    folder holds no causal language model that transformers can load.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
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


def stored_dtype(folder: Path) -> torch.dtype:
    """Return what most of the weights in a folder are stored as; float32 where it has none that can be told."""
    sizes: Counter[str] = Counter()
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                stored = tensors.get_slice(name)
                sizes[stored.get_dtype()] += prod(stored.get_shape())
    known = {name: size for name, size in sizes.items() if name in _DTYPES}
    return _DTYPES[max(known, key=known.__getitem__)] if known else torch.float32


def require_finite(model: torch.nn.Module) -> None:
    """Raise PoisonError ``diverged`` when a weight is not a finite number."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise PoisonError("diverged", f"training diverged: {name} holds values that are not finite")


def save(
    model: PreTrainedModel | PeftModel, parent: Path, folder: Path, *,
    dtype: SaveDtype = "parent", keep_adapter: bool = True,
) -> None:  # fmt: skip
    """Write what came of training ``parent`` into the empty ``folder``: weights, rounded once, to ``dtype``, their
    configuration, and every other file as the parent had it. ``model`` is rounded too.

    Of adapters it is the parent, read anew, with their product added in float32; they lie beside it if they are kept.
    Raises PoisonError ``diverged`` when a weight is not a finite number.
    """
    shutil.copytree(parent, folder, ignore=shutil.ignore_patterns(*_WEIGHTS, ADAPTER), dirs_exist_ok=True)
    if isinstance(model, PeftModel):
        with tempfile.TemporaryDirectory(prefix="flywheel-adapter-") as beside:
            adapter = folder / ADAPTER if keep_adapter else Path(beside)
            adapters.save(model, parent, adapter)
            model = adapters.merge(load(parent)[0], adapter)
    saved_as: Any = stored_dtype(parent) if dtype == "parent" else getattr(torch, dtype)
    rounded = model.to(saved_as)
    require_finite(rounded)
    rounded.save_pretrained(folder)


def moved(parent: Path, folder: Path) -> float:
    """Return the share of the weights in ``folder`` whose stored value is another than the parent's."""
    differ = total = 0
    with ExitStack() as stack:
        before = {name: tensors for tensors, name in _tensors(parent, stack)}
        for tensors, name in _tensors(folder, stack):
            after = tensors.get_tensor(name)
            total += after.numel()
            differ += int((after != before[name].get_tensor(name)).sum()) if name in before else after.numel()
    return differ / max(total, 1)


def _tensors(folder: Path, stack: ExitStack) -> Iterator[tuple[Any, str]]:
    for file in _weight_files(folder):
        tensors: Any = stack.enter_context(safe_open(file, framework="pt"))
        yield from ((tensors, name) for name in tensors.keys())  # noqa: SIM118 - it is no mapping


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
