"""Runs: every row is used, rewards point the way, same inputs give the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flywheel.errors import PoisonError
from flywheel.settings import TrainerSettings
from services.trainer import models
from services.trainer.grpo import RecordedGRPOTrainer
from services.trainer.rows import Row
from services.trainer.training import configuration, micro_batches, train
from tests.training.builders import drifted, recorded_rows, save, tiny_model, tokenizer
from tests.training.test_gradient import logps

pytestmark = pytest.mark.torch


def run(model: Any, rows: Sequence[Row], **values: Any) -> tuple[Any, dict[str, float]]:
    trained = copy.deepcopy(model)
    settings = TrainerSettings(device="cpu", **{"learning_rate": 1e-3, "micro_batch": 16, **values})
    figures = train(trained, tokenizer(), rows, settings, lambda done, total: None)
    return trained.eval(), figures


@torch.no_grad()
def mean_logp(model: Any, rows: Sequence[Row]) -> float:
    return torch.cat([logps(model, row)[0] for row in rows]).mean().item()


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("count", "accumulation"), [(31, 1), (33, 1), (16, 1), (40, 2), (3, 4)])
def test_every_row_is_trained_on_and_none_twice(count: int, accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = recorded_rows(tiny_model(), [count])
    seen: list[tuple[int, ...]] = []
    compute = RecordedGRPOTrainer._compute_loss

    def watch(self: Any, model: Any, inputs: Any) -> Any:
        for prompt, prompt_mask, completion, mask, sampled in zip(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], inputs["completion_mask"],
            inputs["tool_mask"], strict=True,
        ):  # fmt: skip
            if sampled.any():
                seen.append((*prompt[prompt_mask.bool()].tolist(), *completion[mask.bool()].tolist()))
        return compute(self, model, inputs)

    monkeypatch.setattr(RecordedGRPOTrainer, "_compute_loss", watch)
    _, figures = run(tiny_model(), rows, accumulation=accumulation)
    assert sorted(seen) == sorted(tuple(row.tokens) for row in rows)
    passes = -(-count // 16)
    assert figures["steps"] == -(-passes // accumulation)


def test_a_single_row_at_micro_batch_one_is_enough_for_trl() -> None:
    rows = recorded_rows(tiny_model(), [2])[:1]
    rows[0].advantage = 1.0
    _, figures = run(tiny_model(), rows, micro_batch=1)
    assert figures["steps"] == micro_batches(1, TrainerSettings(micro_batch=1)) == 2


def test_padding_and_micro_batches_do_not_change_the_gradient_scale() -> None:
    """A gradient summed over padded micro-batches is the gradient of all rows at once."""
    rows = recorded_rows(tiny_model(), [8, 6])
    whole, _ = run(tiny_model(), rows, micro_batch=14, max_grad_norm=1e9)
    parts, _ = run(tiny_model(), rows, micro_batch=4, accumulation=4, max_grad_norm=1e9)
    torch.testing.assert_close(weights(whole), weights(parts), atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", ["decoupled", "behavior"])
def test_rewarded_play_becomes_likelier_and_negated_rewards_turn_it_round(mode: str) -> None:
    model = tiny_model()
    rows = recorded_rows(model, [8, 8, 8, 8])
    good = [row for row in rows if row.advantage > 0.5]
    bad = [row for row in rows if row.advantage < -0.5]
    for sign in (1.0, -1.0):
        signed = [replace(row, advantage=sign * row.advantage) for row in rows]
        trained, _ = run(model, signed, is_mode=mode, iterations=10, learning_rate=3e-3)
        gap = mean_logp(trained, good) - mean_logp(trained, bad)
        assert sign * (gap - (mean_logp(model, good) - mean_logp(model, bad))) > 0.1


def test_same_rows_parent_and_seed_give_the_same_weights_whatever_ran_before() -> None:
    model = tiny_model()
    rows = recorded_rows(model, [8, 8, 4])
    first, _ = run(model, rows, iterations=3)
    run(drifted(model), recorded_rows(model, [5, 5], seed=9), iterations=2)
    torch.manual_seed(12345)
    again, _ = run(model, rows, iterations=3)
    assert torch.equal(weights(first), weights(again))
    other, _ = run(model, rows, iterations=3, seed=1)
    assert not torch.equal(weights(first), weights(other))


def test_figures_tell_how_far_the_players_were() -> None:
    model = tiny_model()
    rows = recorded_rows(model, [8, 8])
    _, on_policy = run(model, rows)
    _, off_policy = run(drifted(model, 0.1), rows)
    assert on_policy["logp_diff_max"] < 1e-4
    assert on_policy["is_weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert off_policy["logp_diff_mean"] > 0.05
    for name in ("loss", "entropy", "clip_share", "grad_norm", "steps", "tokens_trained", "train_seconds"):
        assert name in on_policy


def test_progress_counts_real_optimizer_steps() -> None:
    rows = recorded_rows(tiny_model(), [8, 8, 8])
    heard: list[tuple[int, int]] = []
    settings = TrainerSettings(device="cpu", micro_batch=8, iterations=2)
    train(tiny_model(), tokenizer(), rows, settings, lambda done, total: heard.append((done, total)))
    assert heard == [(i, 6) for i in range(1, 7)]


def test_a_run_that_diverges_fails_instead_of_giving_a_model() -> None:
    rows = recorded_rows(tiny_model(), [8])
    rows[0].advantage = float("nan")
    with pytest.raises(PoisonError, match="diverged"):
        run(tiny_model(), rows)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters())[0] = float("inf")
    with pytest.raises(PoisonError, match="not finite"):
        models.require_finite(model)


def test_a_saved_model_has_new_weights_and_its_parents_other_files(tmp_path: Path) -> None:
    parent = save(tiny_model(), tmp_path / "parent")
    (parent / "notes.txt").write_text("kept")
    model, words = models.load(parent)
    settings = TrainerSettings(device="cpu", learning_rate=1e-2)
    train(model, words, recorded_rows(tiny_model(), [8]), settings, lambda done, total: None)
    models.save(model, parent, tmp_path / "child")
    again, _ = models.load(tmp_path / "child")
    assert torch.equal(weights(again), weights(model))
    assert not torch.equal(weights(again), weights(tiny_model()))
    assert (tmp_path / "child" / "notes.txt").read_text() == "kept"
    same = (parent / "tokenizer.json").read_bytes() == (tmp_path / "child" / "tokenizer.json").read_bytes()
    assert same


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoisonError) as caught:
        models.load(tmp_path)
    assert caught.value.reason == "bad_model"


def test_configuration_turns_off_what_only_a_gpu_wants(tmp_path: Path) -> None:
    rows = recorded_rows(tiny_model(), [4])
    args = configuration(TrainerSettings(device="cpu"), rows, str(tmp_path))
    assert not args.bf16
    assert not args.activation_checkpointing
    assert args.temperature == 1.0
