"""The REST interface, ``/api/v1``: reading everything that was recorded, trained and deployed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import asyncpg
from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer

from flywheel.ids import Identifier
from flywheel.messages import DEFAULT_CHANNEL
from flywheel.trajectory import Trajectory
from services.gateway import registry, store
from services.gateway.exports import ArtExport, ExportGate
from services.gateway.figures import Figures
from services.gateway.filters import PageQuery, TrajectoryFilter, TrajectoryQuery
from services.gateway.problems import NotFoundError
from services.gateway.views import (
    AckRow,
    AgentRow,
    BatchRow,
    BatchWhole,
    DeploymentRow,
    EventRow,
    JobRow,
    ModelRow,
    ModelWhole,
    Page,
    Problem,
    Summary,
    TrajectoryRow,
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "The token is missing or wrong.",
        404: "There is no such thing.",
        410: "Its events were archived and dropped from the database; the answer says where they are.",
        422: "A parameter does not fit.",
        503: "The database is away; Retry-After says when to come again.",
    }.items()
}

OnePage = Annotated[PageQuery, Query()]
Id = Annotated[Identifier, Path()]


class ExportQuery(TrajectoryFilter):
    """What to export, and how it is written."""

    format: Literal["art"] = "art"


def api(pool: asyncpg.Pool, figures: Figures) -> APIRouter:
    """Return the routes of ``/api/v1`` over this database."""
    router = APIRouter(
        prefix="/api/v1", responses=_PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False, description="token"))]
    )
    gate = ExportGate()

    @router.get("/summary", tags=["loop"])
    async def summary() -> Summary:
        """The whole loop in figures, a moment old."""
        return await figures.summary()

    @router.get("/trajectories", tags=["play"])
    async def trajectories(query: Annotated[TrajectoryQuery, Query()]) -> Page[TrajectoryRow]:
        """Trajectories in short, the newest first. Follow `next` to see every one exactly once."""
        return await store.trajectories(pool, query)

    # Ids may contain slashes, so the longer address comes first.
    @router.get("/trajectories/{trajectory_id:path}/events", tags=["play"])
    async def events(trajectory_id: Id, query: OnePage) -> Page[EventRow]:
        """The events of a trajectory as they arrived, in the order of `seq`."""
        page = await store.events(pool, trajectory_id, query)
        if not page.items and query.cursor is None:
            raise NotFoundError(
                f"No events of trajectory {trajectory_id}. See /api/v1/trajectories for those there are."
            )
        return page

    @router.get("/trajectories/{trajectory_id:path}", tags=["play"], response_model=Trajectory)
    async def trajectory(trajectory_id: Id) -> Response:
        """One trajectory whole: steps with their calls, accesses and rewards, assembled from its events."""
        whole = await store.trajectory(pool, trajectory_id)
        if whole is None:
            raise NotFoundError(f"No trajectory {trajectory_id}. See /api/v1/trajectories for those there are.")
        return Response(await asyncio.to_thread(whole.model_dump_json), media_type="application/json")

    @router.get("/batches", tags=["training"])
    async def batches(query: OnePage) -> Page[BatchRow]:
        """Training batches, the newest first."""
        return await store.batches(pool, query)

    @router.get("/batches/{batch_id:path}", tags=["training"])
    async def batch(batch_id: Id) -> BatchWhole:
        """A training batch, its members and what was trained on it."""
        row = await store.batch(pool, batch_id)
        if row is None:
            raise NotFoundError(f"No batch {batch_id}. See /api/v1/batches for those there are.")
        return BatchWhole(
            **row.model_dump(),
            members=await store.members(pool, batch_id),
            job=await store.job_of_batch(pool, batch_id),
        )

    @router.get("/jobs", tags=["training"])
    async def jobs(query: OnePage) -> Page[JobRow]:
        """Training jobs, the newest first."""
        return await store.jobs(pool, query)

    @router.get("/models", tags=["models"])
    async def models(query: OnePage) -> Page[ModelRow]:
        """Registered models, the newest first."""
        return await registry.models(pool, query)

    @router.get("/models/{version}", tags=["models"])
    async def model(version: Id, channel: Identifier = DEFAULT_CHANNEL) -> ModelWhole:
        """A model with its lineage: back to the trajectories it learned from, forward to the agents that run it."""
        whole = await registry.model(pool, channel, version)
        if whole is None:
            raise NotFoundError(f"No version {version} on channel {channel}. See /api/v1/models for those there are.")
        return whole

    @router.get("/deployments", tags=["models"])
    async def deployments(query: OnePage) -> Page[DeploymentRow]:
        """What agents were told to run, the newest first."""
        return await registry.deployments(pool, query)

    @router.get("/acks", tags=["models"])
    async def acks(query: OnePage) -> Page[AckRow]:
        """What each agent said of each deployment, the newest deployment first."""
        return await registry.acks(pool, query)

    @router.get("/agents", tags=["models"])
    async def agents(query: OnePage) -> Page[AgentRow]:
        """The agents that follow a channel, and what they last said they run."""
        return await registry.agents(pool, query)

    @router.get(
        "/export/trajectories.jsonl",
        tags=["export"],
        response_class=StreamingResponse,
        responses={200: {"content": {ArtExport.media_type: {}}, "description": "one trajectory a line"}},
    )
    async def export(query: Annotated[ExportQuery, Query()]) -> ArtExport:
        """Closed trajectories with a reward as ART JSON Lines, oldest first, one snapshot of the database.

        `X-Flywheel-Without-Reward` says how many closed trajectories were left out for want of a reward,
        `X-Flywheel-Archived` how many with one, because events of theirs were archived and dropped from the database.
        """
        return ArtExport(store.export(pool, query), gate)

    return router
