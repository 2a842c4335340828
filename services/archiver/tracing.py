"""The trace of a batch, and how to get there from the traces of its members, and back.

A batch is made of many trajectories, each played in a trace of its own, and a span has one parent: so a batch begins a
trace, which goes on to the model. Its first span links to the members' traces; in each of these a mark links to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from flywheel import tracing
from services.archiver.store import Batch


def batch_span(batch: Batch, members: Mapping[str, str]) -> AbstractContextManager[tracing.Span]:
    """Begin the trace of a batch; ``members`` are the contexts of its trajectories that are traced."""
    return tracing.span(
        "batch",
        links=((context, {"flywheel.trajectory.id": name}) for name, context in members.items()),
        attributes={
            **_about(batch), "flywheel.batch.rule": batch.rule, "flywheel.batch.traced_members": len(members),
        },
    )  # fmt: skip


async def lead_to_batch(batch: Batch, members: Mapping[str, str]) -> None:
    """Have the trace of each member lead to the current one."""
    if (here := tracing.current()) is not None:
        about = _about(batch)
        await tracing.mark_all("join batch", members.values(), links=[(here, about)], attributes=about)


def _about(batch: Batch) -> dict[str, str]:
    return {"flywheel.batch.id": batch.batch_id, "flywheel.channel": batch.channel}
