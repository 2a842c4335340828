"""Arithmetic may be bfloat16's; weights that are trained are not, and what is saved has the type that was asked for."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from flywheel.errors import FatalError, PoisonError
from flywheel.settings import TrainerSettings
from services.trainer import models, training
from services.trainer.training import configuration, train
from tests.training.builders import recorded_rows, save, tiny_model, tokenizer
from tests.training.test_training import run, weights

pytestmark = pytest.mark.torch

CPU = TrainerSettings(device="cpu")


def test_in_bfloat16_the_arithmetic_is_rounded_and_the_weights_are_not() -> None:
    rows = recorded_rows(tiny_model(), [8, 6])
    exact, figures = run(tiny_model(), rows, iterations=2)
    rounded, coarse = run(tiny_model(), rows, iterations=2, precision="bfloat16")
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    assert not torch.equal(weights(exact), weights(rounded))
    assert coarse["entropy"] == pytest.approx(figures["entropy"], abs=0.02)
    drift, step = (
        (weights(exact) - weights(rounded)).abs().mean(),
        (weights(exact) - weights(tiny_model())).abs().mean(),
    )
    assert drift < step / 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_before_the_first_step_the_ratio_is_1_to_the_last_bit(precision: Any) -> None:
    """The model at the start scored the rows in the micro-batches that they are trained in."""
    rows = recorded_rows(tiny_model(), [8, 6, 9])
    _, figures = run(tiny_model(), rows, micro_batch=23, micro_tokens=60, precision=precision, epsilon=1e-7,
                     epsilon_high=1e-7)  # fmt: skip
    assert figures["steps"] == 1
    assert figures["clip_share"] == 0.0


def test_a_low_rate_would_vanish_in_bfloat16_weights() -> None:
    """Why they are float32: the claim of :func:`services.trainer.models.load`."""
    for weight in (0.01, 0.02, 0.1, 1.0):
        half = torch.tensor(weight, dtype=torch.bfloat16)
        assert half + half.item() / 513 == half
        assert half + 1e-5 == half
        assert half + half.item() / 100 != half


def test_on_a_cpu_nothing_is_asked_for_that_only_a_gpu_wants(tmp_path: Path) -> None:
    rows = recorded_rows(tiny_model(), [4])
    args = configuration(CPU, rows, str(tmp_path))
    assert (args.bf16, args.activation_checkpointing, args.use_cpu) == (False, False, True)
    asked = CPU.model_copy(update={"precision": "bfloat16", "gradient_checkpointing": "on"})
    args = configuration(asked, rows, str(tmp_path))
    assert (args.bf16, args.activation_checkpointing) == (True, True)


def test_with_a_gpu_it_is_bfloat16_and_checkpointed_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    gpu = TrainerSettings()
    assert training.in_bfloat16(gpu)
    assert training.frozen_dtype(gpu) == torch.float32, "weights that are trained"
    assert training.frozen_dtype(TrainerSettings(tuning="lora")) == torch.bfloat16
    assert not training.in_bfloat16(TrainerSettings(precision="float32"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert not training.in_bfloat16(gpu)


def test_what_the_machine_lacks_stops_the_trainer_before_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    training.require_machine(TrainerSettings())
    training.require_machine(TrainerSettings(processes=8, precision="bfloat16", device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FatalError, match="torch sees no CUDA device"):
        training.require_machine(TrainerSettings(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(FatalError, match="PROCESSES is 3, and torch sees 2"):
        training.require_machine(TrainerSettings(processes=3))
    with pytest.raises(FatalError, match="PRECISION is bfloat16"):
        training.require_machine(TrainerSettings(precision="bfloat16"))


def stored(folder: Path) -> dict[str, torch.dtype]:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return {name: tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118


@pytest.mark.parametrize("of_parent", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", ["parent", "float32", "bfloat16"])
def test_what_is_saved_has_the_type_that_was_asked_for(of_parent: torch.dtype, asked: Any, tmp_path: Path) -> None:
    parent = save(tiny_model().to(of_parent), tmp_path / "parent")  # type: ignore[arg-type]
    assert models.stored_dtype(parent) == of_parent
    model, words = models.load(parent)
    train(model, words, recorded_rows(tiny_model(), [8]), CPU, lambda done, total: None)
    models.save(model, parent, tmp_path / "child", dtype=asked)
    wanted = of_parent if asked == "parent" else getattr(torch, asked)
    assert set(stored(tmp_path / "child").values()) == {wanted}
    again, _ = models.load(tmp_path / "child")
    assert again.config.dtype == torch.float32, "the next training's, whatever is stored"
    assert torch.equal(weights(again), weights(model).float())


def test_it_is_told_how_much_of_what_was_learned_was_rounded_off(tmp_path: Path) -> None:
    """A parent in bfloat16 and a low rate: most steps are less than what its files can hold."""
    shares = {}
    for name, dtype in (("coarse", torch.bfloat16), ("fine", torch.float32)):
        parent = save(tiny_model().to(dtype), tmp_path / name)  # type: ignore[arg-type]
        model, words = models.load(parent)
        settings = CPU.model_copy(update={"learning_rate": 1e-5, "warmup_share": 0.0})
        train(model, words, recorded_rows(tiny_model(), [8]), settings, lambda done, total: None)
        models.save(model, parent, tmp_path / f"{name}-child")
        shares[name] = models.moved(parent, tmp_path / f"{name}-child")
    assert shares["fine"] > 0.8
    assert shares["coarse"] < 0.1
    assert models.moved(tmp_path / "fine", tmp_path / "fine") == 0.0


def test_what_no_longer_fits_its_parents_type_is_not_saved(tmp_path: Path) -> None:
    parent = save(tiny_model().half(), tmp_path / "parent")
    model, _ = models.load(parent)
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1e6
    assert math.isfinite(next(model.parameters())[0, 0].item()), "as float32 it is fine"
    with pytest.raises(PoisonError, match="not finite"):
        models.save(model, parent, tmp_path / "child")


def test_dropout_is_off_but_where_adapters_ask_for_it(tmp_path: Path) -> None:
    rows = recorded_rows(tiny_model(), [4])
    assert configuration(CPU, rows, str(tmp_path)).disable_dropout
    asked = CPU.model_copy(update={"tuning": "lora", "lora_dropout": 0.1})
    assert not configuration(asked, rows, str(tmp_path)).disable_dropout
    assert copy.deepcopy(tokenizer()).pad_token_id == 0
