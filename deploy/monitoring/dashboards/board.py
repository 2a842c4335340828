"""What a dashboard is made of here: rows of panels, each a question with the expressions that answer it. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Grafana puts the panel's own window here; wide enough for a rate whatever the zoom.
WINDOW = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and how its series are called in the legend."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One question; ``note`` says how to read the answer. ``unit`` is Grafana's name of it."""

    question: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["lines", "stacked", "number"] = "lines"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard; ``name`` is its file and its stable identity in Grafana."""

    name: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, from the top."""
        return tuple(panel for _, panels in self.rows for panel in panels)


def ask(question: str, *queries: tuple[str, str], **looks: str) -> Panel:
    """Return a panel of lines: its question, then (expression, legend) for each query."""
    return Panel(question, tuple(Query(*query) for query in queries), **looks)  # pyright: ignore[reportArgumentType]


def rate(counter: str, by: str = "", matching: str = "") -> str:
    """Return what a counter does a second, by some of its labels."""
    labels = f"{{{matching}}}" if matching else ""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{labels}[{WINDOW}]))"


def quantile(share: float, histogram: str, by: str = "", matching: str = "") -> str:
    """Return a quantile of a histogram, by some of its labels."""
    labels = f"{{{matching}}}" if matching else ""
    kept = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({kept}) (rate({histogram}_bucket{labels}[{WINDOW}])))"
