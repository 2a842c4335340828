"""The dashboards: what they ask exists, each panel asks a question, and the cluster's Grafana gets all of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from deploy.monitoring.catalogue import OTHERS, asked_for, known_series
from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.board import Board
from deploy.monitoring.expressions import Asked, expressions
from tests.manifests.conftest import built
from tests.manifests.resources import of_kind
from tests.manifests.tools import find_promtool

EVERY = list(expressions())


@pytest.mark.parametrize("asked", EVERY, ids=lambda asked: asked.where)
def test_only_series_that_exist_are_asked_for(asked: Asked) -> None:
    series = set(asked_for(asked.expression))
    assert series and series <= known_series()


def test_no_foreign_series_is_promised_for_nothing() -> None:
    looked_at = {name for asked in EVERY for name in asked_for(asked.expression)}
    assert {name for names in OTHERS.values() for name in names} <= looked_at


def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"asked:{number}", "expr": asked.expression} for number, asked in enumerate(EVERY)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [find_promtool(os.environ), "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("expression", ["rate(flywheel_no_such_total[5m])", 'ALERTS / nothing_of_ours{a="b"}'])
def test_a_series_that_does_not_exist_is_noticed(expression: str) -> None:
    assert not set(asked_for(expression)) <= known_series()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_panel_asks_a_question(board: Board) -> None:
    questions = [panel.question for panel in board.panels]
    assert all(question.endswith("?") and question[0].isupper() for question in questions)
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_grafana_gets_what_the_board_says(board: Board) -> None:
    maps = {m["metadata"]["name"]: m for m in of_kind(built("prod"), "ConfigMap")}
    found = maps[f"dashboard-{board.name}"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    made = json.loads(found["data"][f"{board.name}.json"])
    panels = [panel for panel in made["panels"] if panel["type"] != "row"]
    assert [panel["title"] for panel in panels] == [panel.question for panel in board.panels]
    assert [[target["expr"] for target in panel["targets"]] for panel in panels] == [
        [query.expression for query in panel.queries] for panel in board.panels
    ]
    assert made["uid"] == f"flywheel-{board.name}" and len(made["annotations"]["list"]) == 2
    assert max(Counter(panel["id"] for panel in made["panels"]).values()) == 1


def test_panels_do_not_overlap() -> None:
    for found in of_kind(built("prod"), "ConfigMap"):
        for name, text in found.get("data", {}).items():
            if name.endswith(".json") and "grafana_dashboard" in found["metadata"].get("labels", {}):
                cells = Counter(
                    (x, y)
                    for panel in json.loads(text)["panels"]
                    for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
                    for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
                )
                assert max(cells.values()) == 1 and max(x for x, _ in cells) < 24, name
