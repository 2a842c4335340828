"""Which of a batch's trajectories are traced, and where their traces go on."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from flywheel import tracing
from flywheel.storage.postgres import Connection

_MEMBERS = """
SELECT q.trajectory_id, t.trace_context FROM archive_queue q JOIN trajectories t USING (trajectory_id)
 WHERE q.batch_id = $1 AND t.trace_context IS NOT NULL ORDER BY q.trajectory_id
"""


async def traced_members(conn: Connection | asyncpg.Pool, batch_id: str) -> Mapping[str, str]:
    """Return the trace contexts of a batch's members, by trajectory; none while tracing is off."""
    return dict(await conn.fetch(_MEMBERS, batch_id)) if tracing.on() else {}
