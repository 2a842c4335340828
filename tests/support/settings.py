"""What settings there are, for tests of whatever names them."""

from __future__ import annotations

from flywheel.sections import SECTIONS
from flywheel.settings import Section


def fields() -> dict[str, tuple[type[Section], str]]:
    """Return every setting by the name of its variable: the section that it is in, and its field there."""
    return {
        f"{section.model_config.get('env_prefix', '')}{name.upper()}": (section, name)
        for section in SECTIONS
        for name in section.model_fields
    }
