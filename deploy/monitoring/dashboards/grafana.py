"""Boards as Grafana's JSON, through its own typed builders."""

from __future__ import annotations

from itertools import count

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

from deploy.monitoring.dashboards.board import Board, Panel

_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_WIDTH, _HEIGHT = 8, 8

#: What is drawn over every panel: when did something change?
ANNOTATIONS: tuple[tuple[str, str, str], ...] = (
    (
        "Deployments of services",
        'changes(kube_deployment_status_observed_generation{namespace="flywheel"}[1m]) > 0',
        "blue",
    ),
    ("New versions for agents", "changes(flywheel_deployer_current_number[1m]) > 0", "purple"),
)


def dashboard_json(board: Board) -> str:
    """Return the dashboard as Grafana imports it."""
    built = (
        grafana.Dashboard(board.title)
        .uid(f"flywheel-{board.name}")
        .tags(["flywheel"])
        .editable()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("utc")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(grafana.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .link(grafana.DashboardLink("Flywheel").tags(["flywheel"]).as_dropdown(True).keep_time(True))
    )
    for name, expression, colour in ANNOTATIONS:
        built.annotation(
            grafana.AnnotationQuery()
            .name(name)
            .datasource(_SOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(expression)
        )  # fmt: skip
    number = count(1)
    for title, panels in board.rows:
        built.with_row(grafana.Row(title).id(next(number)))
        for panel in panels:
            built.with_panel(_panel(panel).id(next(number)))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    built = _number() if panel.kind == "number" else _lines(panel)
    built.title(panel.question).datasource(_SOURCE).unit(panel.unit).span(_WIDTH).height(_HEIGHT)
    if panel.note:
        built.description(panel.note)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        asked = (
            prometheus.Dataquery()
            .ref_id(letter)
            .datasource(_SOURCE)
            .expr(query.expression)
            .legend_format(query.legend)
        )  # fmt: skip
        built.with_target(asked.exemplar(True) if query.expression.startswith("histogram_quantile") else asked)
    return built


def _number() -> stat.Panel:
    return (
        stat.Panel()
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    stacked = panel.kind == "stacked"
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
