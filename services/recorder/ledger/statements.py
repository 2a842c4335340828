"""The SQL of the ledger of reward entries."""

from __future__ import annotations

from flywheel.messages import TrajectoryClosed

#: What the ledger needs to know of a trajectory.
NEEDED = ("trajectory_id", "scenario_id", "window_id", "steps", "outcome_count")

OUTCOMES = """
SELECT scope, key, body FROM outcomes WHERE scope = 'scenario' AND key = ANY($1::text[]) AND NOT retracted
UNION ALL
SELECT scope, key, body FROM outcomes WHERE scope = 'window' AND key = ANY($2::text[]) AND NOT retracted
"""

#: Not where one is queued that nobody has begun: it is locked until we commit, so whoever takes it sees what we wrote.
#: One that is under way, or being taken, may have passed that already.
QUEUE_AGAIN = """
WITH asked AS (SELECT * FROM unnest($1::text[], $2::text[]) AS asked (scope, key)),
     queued AS (SELECT work.scope, work.key FROM outcome_work AS work JOIN asked USING (scope, key)
                 WHERE work.after = '' FOR KEY SHARE OF work SKIP LOCKED)
INSERT INTO outcome_work (scope, key) SELECT scope, key FROM asked EXCEPT SELECT scope, key FROM queued
"""

STEPS = """
SELECT trajectory_id, step, body FROM events WHERE trajectory_id = ANY($1::text[]) AND kind = 'step'
 ORDER BY trajectory_id, seq, event_id
"""

ENTRIES = """
SELECT trajectory_id, step, scope, key, subject, name, source, value
  FROM reward_entries WHERE trajectory_id = ANY($1::text[]) AND kind = 'outcome'
"""

_ENTRY = "(trajectory_id, step, scope, key, subject, name, source)"

REMOVE = f"""
DELETE FROM reward_entries USING unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[],
                                        $7::text[]) AS gone {_ENTRY}
 WHERE {" AND ".join(f"reward_entries.{c} = gone.{c}" for c in _ENTRY[1:-1].split(", "))}
   AND reward_entries.kind = 'outcome'
"""

WRITE = """
INSERT INTO reward_entries (trajectory_id, step, scope, key, subject, name, source, value)
SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                     $8::double precision[])
ON CONFLICT (trajectory_id, step, scope, key, subject, name, source, kind)
DO UPDATE SET value = excluded.value, written_at = clock_timestamp()
"""

#: Sums travel as texts: exact, and cheaper than the driver's numerics.
TOTALS = f"""
UPDATE trajectories AS t SET
    outcome_sum = new.total::numeric, outcome_count = new.number,
    revision = t.revision + (t.status <> 'open' AND $4)::int
  FROM unnest($1::text[], $2::text[], $3::int[]) AS new (trajectory_id, total, number)
 WHERE t.trajectory_id = new.trajectory_id
RETURNING {", ".join(f"t.{column}" for column in (*TrajectoryClosed.model_fields, "trace_context"))}
"""
