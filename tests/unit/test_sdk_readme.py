"""What the pages say is what the code does."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from flywheel import events
from flywheel.events import Event, parse
from flywheel.trajectory import assemble
from tests.support.processes import ROOT

PAGE = (ROOT / "docs" / "events.md").read_text()
_LINES = [line for line in PAGE.splitlines() if line.startswith('{"kind"')]
BY_HAND, WITH_A_LOGIN = ([line for line in _LINES if f'"{name}"' in line] for name in ("by-hand-1", "by-hand-2"))


def test_the_trajectory_written_by_hand_is_one_of_every_kind_and_whole() -> None:
    parsed = [parse(line) for line in BY_HAND]
    assert sorted(event.kind for event in parsed) == sorted(events.KINDS)
    whole = assemble(parsed)
    assert whole.missing == [] and whole.status == "completed" and whole.total_reward == 2.0
    assert [call.trainable for call in whole.all_llm_calls()] == [True]
    other = assemble([parse(line) for line in WITH_A_LOGIN])
    assert other.missing == [] and other.status == "completed"


@pytest.mark.parametrize("model", get_args(get_args(Event)[0]))
def test_the_page_names_every_field_of_the_contract(model: type[events.Envelope]) -> None:
    kind = model.model_fields["kind"].default
    envelope, *_ = PAGE.split("## Kinds")
    section = PAGE.split(f"**`{kind}`**")[1].split("\n**`")[0]
    missing = [name for name in model.model_fields if f"`{name}`" not in envelope + section]
    assert missing == []


def test_the_minimal_agent_in_the_pages_is_the_one_that_runs() -> None:
    code = (ROOT / "examples" / "minimal_agent.py").read_text()
    pages = [ROOT / "docs" / "sdk.md", ROOT / "README.md"]
    for page in pages:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        shown = [block for block in blocks if "Recorder.from_env(" in block]
        assert code in shown or not shown, f"{page.name} shows another agent"
    assert code in pages[0].read_text()
    body = code.split("    async with Recorder")[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 12, "ten lines of substance, it says"
