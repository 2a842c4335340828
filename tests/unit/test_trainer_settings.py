"""Settings that would train something else than they say are refused at the start, by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flywheel.settings import TrainerSettings


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"importance_level": "sequence"}, "FLYWHEEL_TRAINER_IMPORTANCE_LEVEL=sequence is for"),
        ({"importance_level": "sequence", "loss_type": "vespo"}, "not for vespo"),
        ({"loss_type": "luspo"}, "luspo needs FLYWHEEL_TRAINER_IMPORTANCE_LEVEL=sequence"),
        ({"loss_type": "cispo"}, "FLYWHEEL_TRAINER_EPSILON_HIGH, which must be above 1"),
        ({"is_cap": 0.5}, "FLYWHEEL_TRAINER_IS_CAP below 1"),
        ({"lora_targets": "q_proj, lm_head"}, "FLYWHEEL_TRAINER_LORA_TARGETS: lm_head cannot"),
        ({"learning_rate": float("inf")}, "finite number"),
        ({"lora_alpha": float("nan")}, "finite number"),
        ({"text_only": "ignore"}, "'quarantine', 'recompute' or 'supervised'"),
        ({"baseline_decay": 0.0}, "greater than 0"),
        ({"processes": 0}, "greater than or equal to 1"),
        ({"supervised_weight": 0.0}, "greater than 0"),
    ],
)
def test_nonsense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainerSettings(**values)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"importance_level": "sequence", "loss_type": "grpo"},
        {"importance_level": "sequence", "loss_type": "luspo"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"is_mode": "behavior", "is_cap": 0.5},
        {"tuning": "lora", "lora_targets": "q_proj,v_proj"},
    ],
)
def test_what_makes_sense_is_not(values: dict[str, Any]) -> None:
    assert TrainerSettings(**values)


def test_the_environment_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TRAINER_LOSS_TYPE", "dr_grpo")
    monkeypatch.setenv("FLYWHEEL_TRAINER_TUNING", "lora")
    found = TrainerSettings.load()
    assert (found.loss_type, found.tuning) == ("dr_grpo", "lora")
