"""What a model's lineage says of the settings it was trained under."""

from __future__ import annotations

import pytest

from flywheel.settings import TrainerSettings

pytestmark = pytest.mark.torch


def test_every_setting_is_in_the_lineage_or_known_to_change_no_weight() -> None:
    from services.trainer import job

    told = job.learning_settings(TrainerSettings(warmup_share=0.5))
    assert told.keys() | job.NOT_LEARNING == TrainerSettings.model_fields.keys()
    assert not told.keys() & job.NOT_LEARNING
    assert told["warmup_share"] == 0.5
