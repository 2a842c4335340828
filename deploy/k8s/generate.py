"""Write what of the manifests follows from the code, or with ``--check`` tell what no longer agrees with it.

``python -m deploy.k8s.generate [--check]``: topics, users, alerting rules and their page, dashboards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from deploy.k8s import kafka
from deploy.monitoring.alerts import ALERTS, rule_groups
from deploy.monitoring.catalogue import asked_for, own_series
from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.grafana import dashboard_json
from deploy.monitoring.page import page

DASHBOARDS = "deploy/k8s/monitoring/dashboards"
ROOT = Path(__file__).parents[2]
_NOTE = "# Written by `python -m deploy.k8s.generate` from the code; `make check` fails when they disagree.\n"


def files() -> dict[str, str]:
    """Return every generated file: its path in the checkout, and its text."""
    return {
        "deploy/k8s/platform/topics.yaml": documents(kafka.topics()),
        "deploy/k8s/platform/users.yaml": documents(kafka.users()),
        "deploy/k8s/monitoring/rules.yaml": documents([rules()]),
        "deploy/compose/rules.yaml": documents([own_rules()]),
        **{f"{DASHBOARDS}/{board.name}.json": dashboard_json(board) for board in BOARDS},
        "docs/alerts.md": page(),
    }


def rules() -> dict[str, Any]:
    """Return the alerting rules as the Prometheus operator's resource."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "flywheel"},
        "spec": rule_groups(),
    }


def own_rules() -> dict[str, Any]:
    """Return the rules about Flywheel's own series, for compose's Prometheus: it has no cluster to ask about."""
    ours = {alert.name for alert in ALERTS if own_series().issuperset(asked_for(alert.expression))}
    groups = [
        {**group, "rules": kept}
        for group in rule_groups()["groups"]
        if (kept := [rule for rule in group["rules"] if rule["alert"] in ours])
    ]
    return {"groups": groups}


def documents(resources: Iterable[dict[str, Any]]) -> str:
    """Return resources as one YAML stream."""
    return _NOTE + yaml.safe_dump_all(resources, sort_keys=False, width=120, allow_unicode=True)


def main(arguments: list[str]) -> int:
    """Write the files, or check them; return the exit status."""
    wanted = files()
    stale = [name for name, text in wanted.items() if _read(ROOT / name) != text]
    if "--check" in arguments:
        for name in stale:
            sys.stderr.write(f"{name} does not agree with the code: run `make docs`\n")
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(wanted[name], encoding="utf-8")
        sys.stdout.write(f"wrote {name}\n")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
