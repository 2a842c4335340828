"""The ledger of reward entries, for those who read trajectories."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.outcomes import RewardEntry
from flywheel.storage.postgres import Connection

_ENTRIES = """
SELECT trajectory_id, nullif(step, -1) AS step, kind AS reward_kind, name, value, source, subject, scope, key
  FROM reward_entries WHERE trajectory_id = ANY($1::text[])
"""


async def reward_entries(
    conn: Connection, trajectories: Sequence[str], *, timeout_s: float | None = None
) -> dict[str, list[RewardEntry]]:
    """Return the entries of each of these trajectories, in their order; none: an empty list.

    To be read in the snapshot that the events are read in, so that they belong together.
    """
    found: dict[str, list[RewardEntry]] = {name: [] for name in trajectories}
    for row in await conn.fetch(_ENTRIES, list(found), timeout=timeout_s):
        fields = dict(row)
        found[fields.pop("trajectory_id")].append(RewardEntry(**fields))
    return {name: sorted(entries, key=lambda entry: entry.order) for name, entries in found.items()}
