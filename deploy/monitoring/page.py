"""The page of objectives and alerts, ``docs/alerts.md``."""

from __future__ import annotations

import re

from deploy.monitoring.alerts import GROUPS
from deploy.monitoring.objectives import OBJECTIVES

_FILLED_IN = re.compile(r"\{\{.*?\}\}")
_HEAD = """\
# Objectives and alerts

Written by `python -m deploy.k8s.generate` from `deploy/monitoring`; `make check` fails when they disagree.

## Objectives

Over 30 days. What is left of 100 % is the budget, and alerts fire by how fast it burns.
"""
_ALERTS = """\

## Alerts

`page`: data or people wait now. `ticket`: for the next working day. Each has a runbook, and is tested with `promtool`
to fire when it should and not when it should not (`make manifests`). Links begin with the label
`runbooks` that your Prometheus has as an external one: set it to where you keep `docs/runbooks`.
"""


def page() -> str:
    """Return the page as Markdown."""
    lines = [_HEAD, "| objective | promise |", "| --- | --- |"]
    lines += [f"| {objective.name} | {objective.promise} |" for objective in OBJECTIVES]
    lines += [_ALERTS, "| alert | severity | lasts | says |", "| --- | --- | --- | --- |"]
    for alerts in GROUPS.values():
        for alert in alerts:
            says = _FILLED_IN.sub("…", alert.summary)
            lines.append(f"| [{alert.name}](runbooks/{alert.name}.md) | {alert.severity} | {alert.lasting} | {says} |")
    return "\n".join(lines) + "\n"
