"""Every expression that we ask of Prometheus, each with where it stands: to test them, or to ask a real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.dashboards import BOARDS
from deploy.monitoring.dashboards.board import WINDOW
from deploy.monitoring.dashboards.grafana import ANNOTATIONS


@dataclass(frozen=True, slots=True)
class Asked:
    """An expression without anything that only Grafana understands."""

    where: str
    expression: str


def expressions(window: str = "5m") -> Iterator[Asked]:
    """Yield those of every alert, panel and annotation; ``window`` stands in for Grafana's own."""
    for alert in ALERTS:
        yield Asked(f"alert {alert.name}", alert.expression)
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                yield Asked(f"{board.name}: {panel.question}", query.expression.replace(WINDOW, window))
    for name, expression, _ in ANNOTATIONS:
        yield Asked(f"annotation {name}", expression)
