"""LoRA: adapters alone are trained, what is saved is the model with their product, and training goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from flywheel.errors import FatalError, PoisonError
from flywheel.settings import TrainerSettings
from services.trainer import adapters, models
from services.trainer.training import frozen_dtype, train
from tests.training.builders import recorded_rows, save, tiny_model

pytestmark = pytest.mark.torch

IDS = torch.arange(2, 18).unsqueeze(0)


def trained(folder: Path, **values: Any) -> tuple[Any, TrainerSettings]:
    """Adapters on the model in ``folder`` after some steps."""
    settings = TrainerSettings(
        device="cpu", tuning="lora", **{"lora_rank": 4, "learning_rate": 1e-2, "micro_batch": 8, **values}
    )
    base, words = models.load(folder, frozen_dtype(settings))
    model: Any = adapters.put_on(base, settings)
    train(model, words, recorded_rows(tiny_model(), [8, 6]), settings, lambda done, total: None)
    return model.eval(), settings


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return save(tiny_model(), tmp_path / "parent")


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_only_adapters_change(beta: float, parent: Path) -> None:
    model, _ = trained(parent, beta=beta)
    before = tiny_model().state_dict()
    moved = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.requires_grad
            moved += int("lora_B" in name and bool(parameter.any()))
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, before[plain]), name
    assert moved == 2 * 7, "every linear layer of both blocks, and the head none"
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model()))
    assert not torch.allclose(logits(model), logits(tiny_model()), atol=1e-3)


def test_what_is_saved_says_what_the_adapters_said(parent: Path, tmp_path: Path) -> None:
    model, _ = trained(parent)
    wanted = logits(model)
    models.save(model, parent, tmp_path / "child")
    child, _ = models.load(tmp_path / "child")
    assert not isinstance(child, PeftModel)
    torch.testing.assert_close(logits(child), wanted, atol=1e-5, rtol=0)
    beside = PeftModel.from_pretrained(models.load(parent)[0], str(tmp_path / "child" / models.ADAPTER))
    torch.testing.assert_close(logits(beside), wanted, atol=1e-5, rtol=0)
    assert sorted(path.name for path in (tmp_path / "child" / models.ADAPTER).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "child" / models.ADAPTER / "adapter_config.json").read_text()


def test_the_next_training_starts_from_the_merged_model_and_keeps_no_old_adapter(parent: Path, tmp_path: Path) -> None:
    first, _ = trained(parent)
    models.save(first, parent, tmp_path / "first")
    second, _ = trained(tmp_path / "first")
    with second.disable_adapter():
        torch.testing.assert_close(logits(second), logits(first), atol=1e-5, rtol=0)
    models.save(second, tmp_path / "first", tmp_path / "second", keep_adapter=False)
    assert not (tmp_path / "second" / models.ADAPTER).exists()
    torch.testing.assert_close(logits(models.load(tmp_path / "second")[0]), logits(second), atol=1e-5, rtol=0)
    full, words = models.load(tmp_path / "second")
    settings = TrainerSettings(device="cpu", micro_batch=8)
    train(full, words, recorded_rows(tiny_model(), [8]), settings, lambda done, total: None)


def test_a_base_of_half_the_size_is_not_what_is_merged_into(parent: Path, tmp_path: Path) -> None:
    """Under bfloat16 the frozen weights are rounded; the child has the parent's own, and the product on them."""
    model, settings = trained(parent, precision="bfloat16")
    assert frozen_dtype(settings) == torch.bfloat16
    kinds = {("lora_" in name, parameter.dtype) for name, parameter in model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    models.save(model, parent, tmp_path / "child")
    child = dict(models.load(tmp_path / "child")[0].named_parameters())
    before = dict(tiny_model().named_parameters())
    name = "model.layers.0.self_attn.q_proj"
    adapter = model.base_model.model.model.layers[0].self_attn.q_proj
    delta = adapter.lora_B.default.weight @ adapter.lora_A.default.weight * adapter.scaling["default"]
    torch.testing.assert_close(child[f"{name}.weight"], before[f"{name}.weight"] + delta, atol=1e-6, rtol=0)
    assert torch.equal(child["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_the_same_seed_makes_the_same_adapters_whatever_ran_before(parent: Path) -> None:
    first, _ = trained(parent)
    torch.manual_seed(99)
    again, _ = trained(parent)
    other, _ = trained(parent, seed=1)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ("q_proj, q_projj", "has no q_projj; its linear layers are down_proj"),
        ("embed_out", "has no embed_out"),
        ("act_fn", "its linear layers are"),
    ],
)
def test_targets_that_the_model_does_not_have_stop_the_trainer_and_lose_no_job(targets: str, says: str) -> None:
    with pytest.raises(FatalError, match=says):
        adapters.put_on(tiny_model(), TrainerSettings(tuning="lora", lora_targets=targets))


def test_named_targets_alone_get_an_adapter() -> None:
    model = adapters.put_on(tiny_model(), TrainerSettings(tuning="lora", lora_targets="q_proj, self_attn.v_proj"))
    wrapped = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert wrapped == {"q_proj", "v_proj"}


def test_a_head_under_another_name_is_refused_too() -> None:
    model = tiny_model()
    model.embed_out = model.lm_head
    del model.lm_head
    model.get_output_embeddings = lambda: model.embed_out  # type: ignore[method-assign]
    with pytest.raises(FatalError, match="the language model head"):
        adapters.put_on(model, TrainerSettings(tuning="lora", lora_targets="embed_out"))


def test_adapters_that_diverged_are_not_saved(parent: Path, tmp_path: Path) -> None:
    model, _ = trained(parent)
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight[0, 0] = float("nan")
    with pytest.raises(PoisonError, match="not finite"):
        models.require_finite(model)
