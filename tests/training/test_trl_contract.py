"""What we rely on inside TRL. When this fails after an upgrade, read the changed method before changing the test."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from transformers import Trainer
from trl.trainer import utils
from trl.trainer.grpo_trainer import GRPOTrainer

from services.trainer.grpo import RecordedGRPOTrainer

pytestmark = pytest.mark.torch

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def source(method: str, owner: type = GRPOTrainer) -> str:
    return inspect.getsource(getattr(owner, method))


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_installed_version_is_the_pinned_one() -> None:
    wanted = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["trainer"]
    for name in ("trl", "transformers"):
        (pin,) = [line for line in wanted if line.startswith(f"{name}==")]
        assert importlib.metadata.version(name) == pin.partition("==")[2], "an exact pin, because of private methods"


def test_the_overridden_methods_are_there_and_take_the_same() -> None:
    overridden = {name for name in vars(RecordedGRPOTrainer) if callable(getattr(GRPOTrainer, name, None))}
    assert overridden - {"__init__"} == {
        "training_step", "_prepare_inputs", "_compute_loss", "_get_per_token_logps_and_entropies", "_get_train_sampler"
    }  # fmt: skip
    for method in overridden - {"__init__", "_get_per_token_logps_and_entropies"}:
        assert parameters(getattr(RecordedGRPOTrainer, method)) == parameters(getattr(GRPOTrainer, method)), method
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
              "compute_aux_loss"]  # fmt: skip
    assert parameters(GRPOTrainer._get_per_token_logps_and_entropies)[: len(wanted)] == wanted
    assert "return logps, entropies, aux_loss" in source("_get_per_token_logps_and_entropies")


def test_nothing_that_is_private_of_ours_is_a_name_of_theirs() -> None:
    for name in ("_settings", "_packed", "_objective", "_supervises", "plan", "_scored", "_logps", "rows"):
        assert not hasattr(GRPOTrainer, name)
        assert f"self.{name} " not in inspect.getsource(GRPOTrainer) + inspect.getsource(Trainer), name


def test_generation_happens_where_inputs_are_prepared_and_nowhere_else() -> None:
    whole = inspect.getsource(GRPOTrainer)
    calls = whole.count("self._generate_and_score_completions(")
    assert calls == source("_prepare_inputs").count("self._generate_and_score_completions(") == 2
    assert "self._buffered_inputs = None" in source("__init__")


def test_a_step_of_the_loop_is_one_call_of_ours() -> None:
    loop = source("_run_epoch", Trainer)
    assert loop.count("self.training_step(model, inputs, num_items_in_batch)") == 1
    assert loop.index("self.training_step(") < loop.index("self.optimizer.step()") < loop.index("global_step += 1")
    step = source("training_step", Trainer)
    assert "inputs = self._prepare_inputs(inputs)" in step
    assert "loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)" in step
    assert "self.accelerator.backward(loss, **kwargs)" in step
    assert (
        "if not loss_is_scaled_for_ga:\n                loss = loss / self.current_gradient_accumulation_steps" in step
    )
    assert "output = super().training_step(model, inputs, num_items_in_batch)" in source("training_step")
    assert "return self._compute_loss(model, inputs)" in source("compute_loss")


def test_the_loss_reads_the_keys_that_we_fill() -> None:
    body = source("_compute_loss")
    read = set(re.findall(r'inputs(?:\.get\(|\[)"(\w+)"', body))
    needed = {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages",
        "old_per_token_logps", "ref_per_token_logps", "num_items_in_batch",
    }  # fmt: skip
    assert needed <= read
    # Read only for other modalities, for vLLM, or for losses with a threshold that we never set.
    assert read - needed <= {
        "sampling_per_token_logps", "importance_sampling_ratio", "pixel_values", "image_grid_thw", "num_images",
        "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids",
        "image_position_ids",
    }  # fmt: skip
    assert "advantages.dim() == 1" in body, "advantages may be given per token"
    assert 'completion_mask * inputs["tool_mask"]' in body
    assert body.count("self._get_per_token_logps_and_entropies(") == 1, "what it scored is what we saw"


def test_the_loss_divides_by_what_we_take_it_to() -> None:
    """What :class:`services.trainer.objective.Objective` undoes."""
    body = re.sub(r"\s+", " ", source("_compute_loss"))
    for fragment in (
        'if self.loss_type in ["grpo", "sapo"]: loss = ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0))'
        ".mean()",
        'elif self.loss_type == "bnpo": loss = (per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)',
        'elif self.loss_type == "dr_grpo": loss = (per_token_loss * mask).sum() / (per_token_loss.size(0) * '
        "self.max_completion_length)",
        'elif self.loss_type in ["cispo", "dapo", "vespo"]:',
        'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
        "normalizer = normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation",
        'elif self.loss_type == "luspo":',
        "loss = (per_token_loss * mask).sum(-1).mean()",
    ):
        assert fragment in body, fragment


def test_the_reference_is_asked_for_by_an_attribute() -> None:
    """Its log-probabilities are ours; a second model is only loaded for args.beta, which stays 0."""
    assert "if self.beta != 0.0:" in source("_compute_loss")
    assert "args.beta" not in source("_compute_loss")
    made = source("__init__")
    assert made.index("self.beta = args.beta") < made.index("self.ref_model = create_model_from_path(")
    assert "if self.args.use_bias_correction_kl:\n                per_token_kl = per_token_kl * coef_1" in source(
        "_compute_loss"
    )


def test_figures_are_logged_in_one_place_and_are_means_over_tokens() -> None:
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in source("__init__")
    body = source("_compute_loss")
    for name in ("entropy", "kl", "clip_ratio/region_mean"):
        assert f'self._metrics[mode]["{name}"].append(global_masked_mean(' in body
    assert "self._metrics[mode].clear()" in source("log")


def test_the_head_scores_the_labelled_positions_and_asks_one_function_whether_to_skip_the_others() -> None:
    users = [line.strip() for line in inspect.getsource(utils).splitlines() if "_use_triton(" in line]
    assert users == ["compact = _use_triton(hidden_states.device)"]
    head = inspect.getsource(utils.add_fused_lm_head)
    for fragment in (
        "hidden_states = backbone_outputs.last_hidden_state[:, :-1]", "labels = labels[:, 1:]", "mask = labels != -100",
        "masked_scatter(mask, x)",
    ):  # fmt: skip
        assert fragment in head, fragment


def test_only_extremes_over_rows_are_gathered() -> None:
    """Elsewhere it would matter that each process is left with its own."""
    gathered = re.findall(r"(\S+) = self\.accelerator\.gather\(", source("_compute_loss"))
    assert gathered == ["gathered_low_clip", "gathered_high_clip"]
    others = source("_compute_loss").count("accelerator.gather")
    assert others - len(gathered) == 2, "of the entropy bonus and of experts, both of which are off"
    assert "self._entropy_bonus_enabled" in source("_compute_loss") and "self.aux_loss_enabled" in source(
        "_compute_loss"
    )
