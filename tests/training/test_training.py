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
from services.trainer import adapters, models
from services.trainer.grpo import RecordedGRPOTrainer
from services.trainer.rows import Row
from services.trainer.training import padding, train
from tests.training.builders import drifted, recorded_rows, save, tiny_model, tokenizer
from tests.training.by_hand import logps

pytestmark = pytest.mark.torch


def run(model: Any, rows: Sequence[Row], **values: Any) -> tuple[Any, dict[str, float]]:
    trained = copy.deepcopy(model)
    settings = TrainerSettings(device="cpu", **{"learning_rate": 1e-3, "micro_batch": 16, **values})
    figures = train(trained, tokenizer(), rows, settings, lambda done, total: None)
    return trained.eval(), figures


@torch.no_grad()
def mean_logp(model: Any, rows: Sequence[Row]) -> float:
    return torch.cat([logps(model, row) for row in rows]).mean().item()


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("count", "values"),
    [
        (31, {}), (33, {}), (16, {}), (40, {"accumulation": 2}), (3, {"accumulation": 4}),
        (29, {"micro_tokens": 20, "iterations": 3}), (1, {"micro_batch": 1}),
    ],
)  # fmt: skip
def test_every_row_is_trained_on_once_a_pass(
    count: int, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = recorded_rows(tiny_model(), [max(count, 2)])[:count]
    seen: list[tuple[int, ...]] = []
    compute = RecordedGRPOTrainer._compute_loss

    def watch(self: Any, model: Any, inputs: Any) -> Any:
        batch = inputs["batch"]
        for tokens, known, sampled in zip(batch.tokens, batch.known, inputs["tool_mask"], strict=True):
            if sampled.any():
                seen.append(tuple(tokens[known.bool()].tolist()))
        return compute(self, model, inputs)

    monkeypatch.setattr(RecordedGRPOTrainer, "_compute_loss", watch)
    _, figures = run(tiny_model(), rows, **values)
    settings = TrainerSettings(**{"micro_batch": 16, **values})
    assert sorted(seen) == sorted(tuple(row.tokens) for row in rows for _ in range(settings.iterations))
    assert figures["steps"] == settings.iterations * -(-count // (settings.micro_batch * settings.accumulation))


def test_how_a_step_is_cut_does_not_change_what_is_learned() -> None:
    rows = recorded_rows(tiny_model(), [8, 6, 5, 9])
    whole, _ = run(tiny_model(), rows, micro_batch=14, iterations=2)
    parts, figures = run(tiny_model(), rows, micro_batch=7, accumulation=2, micro_tokens=30, iterations=2)
    torch.testing.assert_close(weights(whole), weights(parts), atol=2e-5, rtol=0)
    assert figures["tokens_real"] == 2 * sum(len(row.tokens) for row in rows)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_checkpointed_activations_are_computed_twice_and_give_the_same_weights(tuning: Any) -> None:
    rows = recorded_rows(tiny_model(), [8, 6])
    trained, computed = [], []
    for checkpointing in ("off", "on"):
        settings = TrainerSettings(
            device="cpu", micro_batch=16, iterations=2, learning_rate=1e-3, tuning=tuning,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        forwards = [0]
        base: Any = tiny_model()
        model = adapters.put_on(base, settings)
        base.model.layers[0].mlp.register_forward_pre_hook(lambda *_, n=forwards: n.__setitem__(0, n[0] + 1))
        train(model, tokenizer(), rows, settings, lambda done, total: None)
        trained.append(weights(model))
        computed.append(forwards[0])
    torch.testing.assert_close(*trained, atol=1e-6, rtol=0)
    assert computed == [1 + 2, 1 + 2 * 2], "once for the model at the start; then a pass a step, or two"


def test_figures_are_means_over_tokens_not_over_micro_batches() -> None:
    """Short rows, in micro-batches of their own, must not weigh as much as long ones."""
    rows = recorded_rows(tiny_model(), [8, 6, 5, 9])
    _, whole = run(tiny_model(), rows, micro_batch=28, beta=0.1, micro_tokens=100_000)
    _, parts = run(tiny_model(), rows, micro_batch=4, accumulation=7, micro_tokens=20, beta=0.1)
    for name in ("entropy", "kl", "clip_share", "loss", "grad_norm", "logp_diff_mean"):
        assert parts[name] == pytest.approx(whole[name], abs=2e-6), name


def test_padding_is_told_and_little() -> None:
    rows = recorded_rows(tiny_model(), [8] * 8)
    long = replace(rows[0], tokens=rows[0].tokens * 5, sampled=[0] * 4 * len(rows[0].tokens) + rows[0].sampled,
                   logprobs=[0.0] * 4 * len(rows[0].tokens) + rows[0].logprobs)  # fmt: skip
    mixed = [long, *rows[1:]]
    lengths = [len(row.tokens) for row in mixed]
    told = padding(mixed, TrainerSettings(micro_batch=32), 1)
    naive = 1 - sum(lengths) / (len(lengths) * max(lengths))
    assert told["tokens_real"] == sum(lengths)
    assert told["padding_share"] == pytest.approx(1 - told["tokens_real"] / told["tokens_padded"], abs=1e-4)
    assert told["padding_share"] < naive / 2


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
