"""Every section of settings there is, in the order that people read them."""

from __future__ import annotations

from flywheel.scoring_settings import ScoringSettings
from flywheel.settings import SECTIONS as _SERVICES
from flywheel.settings import Section, TrainerSettings

_after = _SERVICES.index(TrainerSettings) + 1

SECTIONS: tuple[type[Section], ...] = (*_SERVICES[:_after], ScoringSettings, *_SERVICES[_after:])
