"""The pages a person sees: the loop at a glance, and one trajectory to read. Server-rendered, without scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import quote

import asyncpg
import jinja2
from fastapi import APIRouter, Path
from fastapi.responses import FileResponse, HTMLResponse

from flywheel.ids import Identifier
from services.gateway import registry, store
from services.gateway.charts import Chart, reward_chart
from services.gateway.figures import Figures
from services.gateway.filters import PageQuery, TrajectoryQuery
from services.gateway.problems import RETRY_AFTER_S
from services.gateway.views import RewardRow

_HERE = FilePath(__file__).parent
#: Longest text that a page shows of one field, and most steps; the interface has everything.
LONGEST_TEXT = 20_000
MOST_STEPS = 200
_RECENT = 12
_AGENTS = 100
_CHARTS = 3
_ONE_LINE = 500


def pages(pool: asyncpg.Pool, figures: Figures) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    render = Renderer()

    @router.get("/")
    async def start() -> HTMLResponse:
        try:
            recent = PageQuery(limit=_RECENT)
            summary = await figures.summary()
            context = {
                "summary": summary,
                "charts": charts(summary.reward_by_version),
                "trajectories": (await store.trajectories(pool, TrajectoryQuery(limit=_RECENT))).items,
                "batches": (await store.batches(pool, recent)).items,
                "jobs": (await store.jobs(pool, recent)).items,
                "models": (await registry.models(pool, recent)).items,
                "agents": (await registry.agents(pool, PageQuery(limit=_AGENTS))).items,
            }
        except Exception as error:
            return _unavailable(render, error)
        return render("start.html", **context)

    @router.get("/trajectories/{trajectory_id:path}")
    async def trajectory(trajectory_id: Annotated[Identifier, Path()]) -> HTMLResponse:
        try:
            whole = await store.trajectory(pool, trajectory_id)
        except store.ArchivedError as error:
            return render("archived.html", status=410, trajectory_id=trajectory_id, why=str(error))
        except Exception as error:
            return _unavailable(render, error)
        if whole is None:
            return render("missing.html", status=404, trajectory_id=trajectory_id)
        return await asyncio.to_thread(render, "trajectory.html", t=whole, most_steps=MOST_STEPS)

    @router.get("/static/style.css")
    async def style() -> FileResponse:
        return FileResponse(
            _HERE / "static" / "style.css", media_type="text/css", headers={"Cache-Control": "no-cache"}
        )

    return router


class Renderer:
    """Renders templates. Everything that is put into one is escaped: agents write what they like."""

    def __init__(self) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            ago=ago,
            number=number,
            reward=reward,
            pretty=pretty,
            compact=compact,
            path=lambda text: quote(text, safe=""),
            moment=moment,
        )

    def __call__(self, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        """Return the page."""
        text = self._environment.get_template(template).render(now=datetime.now(UTC), **context)
        return HTMLResponse(text, status_code=status)


def charts(figures: Iterable[RewardRow]) -> list[tuple[str, Chart]]:
    """Return the reward charts of the channels that were played most."""
    by_channel: dict[str, list[RewardRow]] = {}
    for row in figures:
        by_channel.setdefault(row.channel or "no channel", []).append(row)
    most_played = sorted(by_channel.items(), key=lambda channel: -sum(row.trajectories for row in channel[1]))
    drawn = ((channel, reward_chart(rows)) for channel, rows in most_played[:_CHARTS])
    return [(channel, chart) for channel, chart in drawn if chart is not None]


def ago(then: datetime | None, now: datetime) -> str:
    """Say how long ago it was, in the largest unit that fits."""
    if then is None:
        return "—"
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def moment(then: datetime | None) -> str:
    """Write a time in UTC, to the second."""
    return "—" if then is None else then.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: int | None) -> str:
    """Write a count with thin spaces."""
    return "—" if value is None else f"{value:,}".replace(",", "\u2009")


def reward(value: float | None) -> str:
    """Write a reward; a trajectory without one has a dash, not a zero."""
    return "—" if value is None else f"{value:.3f}".replace("-", "\u2212")


def pretty(value: Any) -> str:
    """Write data for a person, cut where it is very long."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… {len(text) - LONGEST_TEXT} more characters in the JSON"


def compact(value: Any) -> str:
    """Return data on one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _ONE_LINE else f"{text[:_ONE_LINE]}…"


def _unavailable(render: Renderer, error: Exception) -> HTMLResponse:
    """Say that the database is away; any other error is raised again."""
    why = store.away(error)
    if why is None:
        raise error
    page = render("unavailable.html", status=503, why=why, seconds=RETRY_AFTER_S)
    page.headers["Retry-After"] = str(RETRY_AFTER_S)
    return page
