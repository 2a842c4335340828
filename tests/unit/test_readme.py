"""What the README and the pages under docs/ say exists, exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel.tools.docs import pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_and_command_it_names_exists(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    commands = set(re.findall(r"(?:`|^|bin/)flywheel ([a-z]+)", text, re.MULTILINE))
    assert commands <= COMMANDS


COMMANDS = {"up", "events", "down", "status", "logs", "clean", "generate", "validate", "model", "dead", "outcome"}


def test_the_command_line_has_the_commands_that_the_pages_may_name() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "flywheel.cli.main", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert {name for name in COMMANDS if re.search(rf"\b{name}\b", shown)} == COMMANDS


def test_every_setting_and_metric_it_names_exists() -> None:
    reference = "".join(pages().values())
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"FLYWHEEL_[A-Z0-9_]+[A-Z0-9]|flywheel_[a-z_]+[a-z]", text))
        # A query asks for a histogram by its series.
        assert {name for name in named if name.removesuffix("_bucket") not in reference} == set(), page.name


@pytest.mark.parametrize("name", list(pages()))
def test_generated_pages_agree_with_the_code(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "run `make docs`"
