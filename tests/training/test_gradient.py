"""The update is the one that the formula gives, by an independent, unpadded, hand-written loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from flywheel.settings import TrainerSettings
from services.trainer import adapters
from services.trainer.grpo import RecordedGRPOTrainer
from services.trainer.rows import Row
from services.trainer.training import configuration
from tests.training.builders import drifted, recorded_rows, supervised_rows, tiny_model, tokenizer
from tests.training.by_hand import Loss, Pass, gradient, logps, step_loss

pytestmark = pytest.mark.torch

SIZES = [3, 5, 1, 4, 2, 6]
#: Two steps and three, of several micro-batches each, and all rows at once.
LAYOUTS = [
    pytest.param({"micro_batch": 4, "accumulation": 4, "micro_tokens": 40}, id="bucketed"),
    pytest.param({"micro_batch": 100}, id="whole"),
]
LOSSES = [
    pytest.param(Loss("grpo"), id="grpo"),
    pytest.param(Loss("bnpo"), id="bnpo"),
    pytest.param(Loss("dapo"), id="dapo"),
    pytest.param(Loss("dr_grpo"), id="dr_grpo"),
    pytest.param(Loss("cispo", high=1.1), id="cispo"),
    pytest.param(Loss("sapo"), id="sapo"),
    pytest.param(Loss("vespo"), id="vespo"),
    pytest.param(Loss("luspo", level="sequence"), id="luspo"),
    pytest.param(Loss("grpo", level="sequence"), id="gspo"),
]


@dataclass(frozen=True)
class Played:
    """Rows that a policy sampled and rows without log-probabilities, a later one from which training starts, and one
    that has been trained a while.
    """

    rows: list[Row]
    start: Any
    now: Any

    def scores(self, rows: Sequence[Row], temperature: float = 1.0) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {row.trajectory_id: logps(self.start, row, temperature) for row in rows}


@pytest.fixture(scope="module")
def played() -> Played:
    model = tiny_model().eval()
    rows = [*recorded_rows(model, SIZES), *supervised_rows(model, 4)]
    return Played(rows, drifted(model), drifted(drifted(model), 0.03))


class Bench:
    """A trainer that has scored its rows with the model at the start, and whose model has moved on since."""

    def __init__(self, played: Played, output: Any, rows: Sequence[Row] | None = None, **values: Any) -> None:
        self.rows = played.rows if rows is None else rows
        settings = TrainerSettings(device="cpu", **values)
        self.trainer = RecordedGRPOTrainer(
            model=adapters.put_on(copy.deepcopy(played.start), settings), rows=self.rows, settings=settings,
            args=configuration(settings, self.rows, str(output)), processing_class=tokenizer(),
        )  # fmt: skip
        self.trainer._buffered_inputs = self.trainer._score_start()
        self.model: Any = self.trainer.model
        self.steps = self.trainer.plan(0)

    def move_to(self, model: Any) -> Bench:
        self.model.load_state_dict(model.state_dict())
        return self

    def gradient(self, step: int) -> tuple[torch.Tensor, float]:
        self.model.zero_grad()
        self.trainer.state.global_step = step
        loss = self.trainer.training_step(self.model, {})
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.requires_grad]), loss.item()

    def gradients(self) -> torch.Tensor:
        """Of every step of a pass, at the same weights."""
        return torch.stack([self.gradient(step)[0] for step in range(len(self.steps))])


def loss_settings(loss: Loss) -> dict[str, Any]:
    return {
        "loss_type": loss.kind, "importance_level": loss.level, "epsilon_high": loss.high, "is_mode": loss.mode,
        "beta": loss.beta, "supervised_weight": loss.supervised_weight, "temperature": loss.temperature,
    }  # fmt: skip


def holds(bench: Bench, reference: Any, played: Played, loss: Loss) -> None:
    """Whether loss and gradient of every step are those of the formula, on a model of the same weights."""
    whole = Pass.of(bench.rows, len(bench.steps))
    start = played.scores(bench.rows, loss.temperature)
    for number, step in enumerate(bench.steps):
        got, got_loss = bench.gradient(number)
        wanted_loss = step_loss(reference, start, [bench.rows[row] for row in step.rows], whole, loss)
        wanted = gradient(reference, wanted_loss)
        assert got_loss == pytest.approx(wanted_loss.item(), abs=1e-6)
        assert wanted.norm() > 1e-3
        assert (got - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["behavior", "decoupled"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_written_formula(
    loss: Loss, mode: str, layout: dict[str, Any], played: Played, tmp_path: Any
) -> None:
    loss = replace(loss, mode=mode, beta=0.05)
    bench = Bench(played, tmp_path, **layout, **loss_settings(loss)).move_to(played.now)
    holds(bench, copy.deepcopy(played.now), played, loss)


def test_so_it_is_at_the_temperature_of_sampling(played: Played, tmp_path: Any) -> None:
    loss = Loss(beta=0.05, temperature=0.7)
    bench = Bench(played, tmp_path, micro_batch=8, **loss_settings(loss)).move_to(played.now)
    holds(bench, copy.deepcopy(played.now), played, loss)


@pytest.mark.parametrize("mode", ["behavior", "decoupled"])
def test_so_is_that_of_adapters(mode: str, played: Played, tmp_path: Any) -> None:
    loss = Loss(mode=mode, beta=0.05)
    bench = Bench(played, tmp_path, micro_batch=8, tuning="lora", lora_rank=4, **loss_settings(loss))
    reference = adapters.put_on(copy.deepcopy(played.start), TrainerSettings(tuning="lora", lora_rank=4))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    holds(bench.move_to(reference), reference, played, loss)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.id != "bnpo"])
def test_a_pass_adds_up_to_the_whole_batch_however_it_is_cut(loss: Loss, played: Played, tmp_path: Any) -> None:
    bench = Bench(played, tmp_path, micro_batch=3, accumulation=2, micro_tokens=60, **loss_settings(loss))
    whole = Bench(played, tmp_path, micro_batch=100, micro_tokens=10**6, **loss_settings(loss))
    assert (len(bench.steps), len(whole.steps)) == (5, 1)
    once, _ = whole.move_to(played.now).gradient(0)
    assert (bench.move_to(played.now).gradients().mean(0) - once).abs().max() <= 1e-6


@pytest.mark.parametrize("mode", ["behavior", "decoupled"])
def test_nothing_but_sampled_tokens_gets_gradient(mode: str, played: Played, tmp_path: Any) -> None:
    bench = Bench(played, tmp_path, micro_batch=100, is_mode=mode)
    hidden: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        hidden.append(output)

    bench.model.model.norm.register_forward_hook(keep)
    bench.gradient(0)
    moved, sampled = 0, 0
    for share, states in zip((shares[0] for shares in bench.steps[0].rounds), hidden, strict=True):
        gradients = states.grad
        assert gradients is not None
        mine = torch.zeros(gradients.shape[:2], dtype=torch.bool)
        for at, row in enumerate(share):
            for position, one in enumerate(bench.rows[row].sampled):
                mine[at, position - 1] |= bool(one)
        touched = gradients.norm(dim=-1) > 0
        assert not (touched & ~mine).any()
        moved, sampled = moved + int(touched.sum()), sampled + int(mine.sum())
    assert sampled == sum(row.sampled_count for row in bench.rows)
    assert moved > sampled / 2


@pytest.mark.parametrize("mode", ["behavior", "decoupled"])
def test_recorded_logprobs_steer_the_update(mode: str, played: Played, tmp_path: Any) -> None:
    rows = [
        replace(row, logprobs=[p + 0.3 * s for p, s in zip(row.logprobs, row.sampled, strict=True)])
        for row in played.rows
    ]
    before, _ = Bench(played, tmp_path, micro_batch=100, is_mode=mode).gradient(0)
    after, _ = Bench(played, tmp_path, rows, micro_batch=100, is_mode=mode).gradient(0)
    assert (before - after).norm() > 0.05 * before.norm()


def test_behavior_and_decoupled_agree_on_policy(played: Played, tmp_path: Any) -> None:
    rows = recorded_rows(played.start.eval(), [4, 4, 4])
    behavior, _ = Bench(played, tmp_path, rows, micro_batch=100, is_mode="behavior").gradient(0)
    decoupled, _ = Bench(played, tmp_path, rows, micro_batch=100, is_mode="decoupled").gradient(0)
    assert (behavior - decoupled).abs().max() <= 1e-6


def test_supervised_tokens_have_no_ratio_and_no_log_probabilities(played: Played, tmp_path: Any) -> None:
    """Whatever stands where their log-probabilities would, it changes nothing; and figures of ratios leave them out."""
    told = [replace(row, logprobs=[-9.0 * row.supervised + p for p in row.logprobs]) for row in played.rows]
    for mode in ("behavior", "decoupled"):
        silent = Bench(played, tmp_path, micro_batch=100, is_mode=mode, beta=0.1).move_to(played.now)
        loud = Bench(played, tmp_path, told, micro_batch=100, is_mode=mode, beta=0.1).move_to(played.now)
        assert torch.equal(silent.gradient(0)[0], loud.gradient(0)[0])
        without = [row for row in played.rows if not row.supervised]
        alone = Bench(played, tmp_path, without, micro_batch=100, is_mode=mode, beta=0.1).move_to(played.now)
        alone.gradient(0)
        shown, wanted = (dict(bench.trainer._metrics["train"]) for bench in (loud, alone))
        for name in wanted.keys() - {"step_time"}:
            assert shown[name][0] == pytest.approx(wanted[name][0], rel=1e-5), name
        assert shown["supervised/nll"][0] == pytest.approx(
            -torch.cat([logps(played.now, row) for row in played.rows if row.supervised]).mean().item(), rel=1e-5
        )


def test_the_reference_and_the_trust_region_are_the_model_at_the_start(played: Played, tmp_path: Any) -> None:
    bench = Bench(played, tmp_path, micro_batch=100, beta=0.5)
    assert bench.trainer.ref_model is None, "no second model is held for it"
    bench.gradient(0)
    figures = bench.trainer._metrics["train"]
    assert figures["kl"] == [pytest.approx(0.0, abs=1e-6)]
    bench.move_to(played.now).gradient(0)
    scores = played.scores(rows := [row for row in played.rows if not row.supervised])
    with torch.no_grad():
        apart = torch.cat([scores[row.trajectory_id] - logps(played.now, row) for row in rows])
    assert figures["kl"][1] == pytest.approx(((-apart).exp() * (apart.exp() - apart - 1)).mean().item(), rel=1e-4)
