"""Each alert fires when it should and not when it should not, asks for series that exist, and has a runbook."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.alerts import ALERTS, Alert, rule_groups
from deploy.monitoring.catalogue import asked_for, known_series, own_series
from tests.manifests.alert_cases import CASES, Case
from tests.manifests.conftest import built
from tests.manifests.resources import one
from tests.manifests.tools import find_promtool
from tests.support.processes import ROOT

RUNBOOKS = ROOT / "docs" / "runbooks"
PARTS = ("## What it means", "## How to see it", "## What to do")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_promtool(os.environ), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as the cluster's Prometheus gets them."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    write(path, one(built("prod"), "PrometheusRule", "flywheel")["spec"])
    return path


def test_the_cluster_gets_every_alert() -> None:
    assert one(built("prod"), "PrometheusRule", "flywheel")["spec"] == rule_groups()
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


def test_prometheus_takes_the_rules(rules: Path) -> None:
    done = promtool("check", "rules", rules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_should(alert: Alert, tmp_path: Path) -> None:
    """With its own rule alone: evaluating all of them for each case takes minutes."""
    alone, tests = tmp_path / "rules.yaml", tmp_path / "tests.yaml"
    write(alone, {"groups": [{"name": "alone", "rules": [alert.rule()]}]})
    cases = [simulated(case) for case in CASES if case.alert == alert.name]
    write(tests, {"rule_files": [str(alone)], "evaluation_interval": "1m", "tests": cases})
    done = promtool("test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr


def simulated(case: Case) -> dict[str, Any]:
    """Return a case as promtool reads it."""
    firing = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)'
    expected = {"expr": firing, "eval_time": case.at, "exp_samples": [{"labels": "{}", "value": case.firing}]}
    return {
        "name": case.says,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [expected],
    }


def write(path: Path, value: object) -> None:
    path.write_text(yaml.safe_dump(value), encoding="utf-8")


def test_every_alert_is_tested_both_ways() -> None:
    for alert in ALERTS:
        outcomes = {case.firing > 0 for case in CASES if case.alert == alert.name}
        assert outcomes == {True, False}, alert.name
    assert {case.alert for case in CASES} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_asks_for_series_that_exist(alert: Alert) -> None:
    asked = set(asked_for(alert.expression))
    assert asked and asked <= known_series()


def test_cases_are_made_of_series_that_exist() -> None:
    names = {series.partition("{")[0] for case in CASES for series in case.series}
    assert names <= known_series()
    assert names & own_series()


@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_an_alert_has_a_runbook(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {alert}\n")
    parts = [text.partition(section)[2].partition("\n## ")[0].strip() for section in PARTS]
    assert all(len(part) > 40 for part in parts), "a section is missing, or says nothing"


def test_no_runbook_is_of_an_alert_that_is_gone() -> None:
    assert {p.stem for p in RUNBOOKS.glob("[A-Z]*.md")} == {alert.name for alert in ALERTS}
