"""Announcements of closed and revised trajectories, written into the outbox in the transaction that changed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel.messages import TrajectoryClosed
from flywheel.stream.outbox import enqueue_many
from flywheel.topics import TRAJECTORIES


async def announce(conn: Any, rows: Sequence[Mapping[str, Any]]) -> list[TrajectoryClosed]:
    """Enqueue a message for each row of ``trajectories``, in the trace of its agent, and return them."""
    messages = [TrajectoryClosed(**row) for row in rows]
    contexts = [row["trace_context"] for row in rows]
    await enqueue_many(conn, TRAJECTORIES, zip([m.trajectory_id for m in messages], messages, contexts, strict=True))
    return messages
