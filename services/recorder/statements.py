"""The recorder's SQL. The merge of a trajectory's row is :meth:`services.recorder.aggregate.Delta.absorb`, said in
SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel.exact import decimal_text
from services.recorder.aggregate import Delta
from services.recorder.copying import COLUMNS

#: Lives as long as its connection; emptied by each commit.
INCOMING = """
CREATE TEMP TABLE incoming (
    event_id uuid, trajectory_id text, seq integer, kind text, step integer, agent_id text, time timestamptz,
    digest bytea, src_partition integer, src_offset bigint, body text
) ON COMMIT DELETE ROWS
"""

#: In the order of the ids, so that two processes that get the same events never wait for each other in a circle.
INSERT_NEW = f"""
INSERT INTO events ({", ".join(COLUMNS)})
SELECT {", ".join(COLUMNS)} FROM incoming ORDER BY event_id
ON CONFLICT (event_id) DO NOTHING
RETURNING event_id
"""

STORED_DIGESTS = "SELECT event_id, digest FROM events WHERE event_id = ANY($1::uuid[])"

_COUNTERS = (
    "events", "steps", "llm_calls", "untrainable_calls", "infrastructure_failures", "provider_accesses", "rewards",
    "reward_sum", "reward_count", "prompt_tokens", "completion_tokens",
)  # fmt: skip
_START = (
    "start_seq", "start_event_id", "started_at", "scenario_id", "group_id", "group_size", "episode_id", "split",
    "channel", "model_version",
)  # fmt: skip
_END = (
    "end_seq", "end_event_id", "ended_at", "status", "stated_failure", "error", "final_balance", "final_pnl",
)  # fmt: skip
_TYPES = {
    "first_event_at": "timestamptz", "started_at": "timestamptz", "ended_at": "timestamptz",
    "start_event_id": "uuid", "end_event_id": "uuid",
    "reward_sum": "text", "final_balance": "double precision", "final_pnl": "double precision",
    "prompt_tokens": "bigint", "completion_tokens": "bigint",
    **dict.fromkeys(("seq_max", "start_seq", "end_seq", "group_size"), "integer"),
    **dict.fromkeys(set(_COUNTERS) - {"reward_sum", "prompt_tokens", "completion_tokens"}, "integer"),
}  # fmt: skip
_DELTA = ("trajectory_id", "agent_id", "first_event_at", "seq_max", *_COUNTERS, *_START, *_END, "trace_context")

_EARLIER = (
    "(excluded.start_seq IS NOT NULL AND (t.start_seq IS NULL"
    " OR (excluded.start_seq, excluded.start_event_id) < (t.start_seq, t.start_event_id)))"
)
_LATER = (
    "(excluded.end_seq IS NOT NULL AND (t.end_seq IS NULL"
    " OR (excluded.end_seq, excluded.end_event_id) > (t.end_seq, t.end_event_id)))"
)
_HOUR = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24')"""


def _choose(condition: str, columns: tuple[str, ...]) -> str:
    return ",\n    ".join(f"{c} = CASE WHEN {condition} THEN excluded.{c} ELSE t.{c} END" for c in columns)


_ANNOUNCED = (
    "trajectory_id", "revision", "status", "failure", "split", "agent_id", "scenario_id", "group_id", "group_size",
    "window_id", "model_version", "steps", "llm_calls", "total_reward", "missing", "closed_at", "trace_context",
)  # fmt: skip

_LIST = ", ".join(_DELTA)
_SELECTED = ", ".join(
    {
        "split": "coalesce(split, 'train')",
        "status": "coalesce(status, 'open')",
        "reward_sum": "reward_sum::numeric",  # a text on the way: exact, and cheaper than the driver's numerics
    }.get(c, c)
    for c in _DELTA
)
_ARRAYS = ", ".join(f"${n}::{_TYPES.get(c, 'text')}[]" for n, c in enumerate(_DELTA, 1))
_FIRST_EVENT = "least(t.first_event_at, excluded.first_event_at)"
_STARTED = f"CASE WHEN {_EARLIER} THEN excluded.started_at ELSE t.started_at END"

#: Rows come in the order of their ids, so that locks are always taken in the same order.
UPSERT = f"""
INSERT INTO trajectories AS t ({_LIST}, window_id, revision, closed_at)
SELECT {_SELECTED},
       {_HOUR.format("coalesce(started_at, first_event_at)")},
       (end_seq IS NOT NULL)::int,
       CASE WHEN end_seq IS NOT NULL THEN clock_timestamp() END
  FROM unnest({_ARRAYS}) AS d ({_LIST})
 ORDER BY trajectory_id
ON CONFLICT (trajectory_id) DO UPDATE SET
    agent_id = CASE WHEN {_EARLIER} THEN excluded.agent_id
                    WHEN t.start_seq IS NULL THEN least(t.agent_id, excluded.agent_id COLLATE "C")
                    ELSE t.agent_id END,
    first_event_at = {_FIRST_EVENT},
    seq_max = greatest(t.seq_max, excluded.seq_max),
    {", ".join(f"{c} = t.{c} + excluded.{c}" for c in _COUNTERS)},
    {_choose(_EARLIER, _START)},
    {_choose(_LATER, _END)},
    window_id = {_HOUR.format(f"coalesce({_STARTED}, {_FIRST_EVENT})")},
    revision = t.revision + (t.status <> 'open' OR excluded.end_seq IS NOT NULL)::int,
    closed_at = coalesce(t.closed_at, excluded.closed_at),
    trace_context = coalesce(t.trace_context, excluded.trace_context),
    last_ingested_at = clock_timestamp()
RETURNING {", ".join(_ANNOUNCED)}, outcome_count
"""

#: Silent by the database's clock, never by the agents'. Rows that somebody writes right now are not silent: skipped.
#: An index finds those whose first event is older than the shortest silence ($1) that any scenario may have; the first
#: pattern that fits says how long a scenario's is, $3 where none does.
CLOSE_IDLE = f"""
WITH idle AS (
    SELECT trajectory_id FROM trajectories AS t
     WHERE status = 'open' AND first_ingested_at < now() - make_interval(secs => $1)
       AND last_ingested_at < now() - make_interval(secs => coalesce(
             (SELECT seconds FROM unnest($4::text[], $5::float8[]) WITH ORDINALITY AS rule (pattern, seconds, rank)
               WHERE t.scenario_id LIKE pattern ORDER BY rank LIMIT 1), $3))
     ORDER BY trajectory_id LIMIT $2 FOR UPDATE SKIP LOCKED)
UPDATE trajectories AS t SET status = 'incomplete', revision = t.revision + 1, closed_at = clock_timestamp()
  FROM idle WHERE t.trajectory_id = idle.trajectory_id
RETURNING {", ".join(f"t.{column}" for column in _ANNOUNCED)}
"""

OPEN = "SELECT count(*) FROM trajectories WHERE status = 'open'"


def upsert_arguments(deltas: list[Delta], traces: Mapping[str, str]) -> list[list[Any]]:
    """Return the columns of :data:`UPSERT`, one list each; ``traces`` are contexts by trajectory."""
    none_of_start, none_of_end = (None,) * len(_START), (None,) * len(_END)
    rows = []
    for d in deltas:
        start = d.start and (*d.start[:3], *d.start[4:])
        agent_id = d.start.agent_id if d.start else d.agent_id
        counters = (decimal_text(d.reward_sum) if name == "reward_sum" else getattr(d, name) for name in _COUNTERS)
        rows.append(
            (
                d.trajectory_id, agent_id, d.first_event_at, d.seq_max, *counters,
                *(start or none_of_start), *(d.end or none_of_end), traces.get(d.trajectory_id),
            )
        )  # fmt: skip
    return [list(column) for column in zip(*rows, strict=True)]
