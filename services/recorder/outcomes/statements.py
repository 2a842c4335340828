"""The SQL of outcomes."""

from __future__ import annotations

from services.recorder.ledger.statements import NEEDED

#: What is stored about what is asked for, by its place there, from 1.
KNOWN = """
SELECT asked.place, revision, digest
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
       WITH ORDINALITY AS asked (scope, key, subject, name, source, place)
  JOIN outcomes USING (scope, key, subject, name, source)
"""

STORE = """
INSERT INTO outcomes (scope, key, subject, name, source, outcome_id, revision, retracted, time, digest,
                      src_partition, src_offset, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (scope, key, subject, name, source) DO UPDATE SET
    outcome_id = excluded.outcome_id, revision = excluded.revision, retracted = excluded.retracted,
    time = excluded.time, digest = excluded.digest, src_partition = excluded.src_partition,
    src_offset = excluded.src_offset, body = excluded.body, received_at = clock_timestamp()
"""

#: A row each time: a walk that is under way is not touched, so nobody who stores waits for one who applies.
QUEUE = "INSERT INTO outcome_work (scope, key) SELECT * FROM unnest($1::text[], $2::text[])"

#: But for what is put off.
NEXT_WORK = """
SELECT id, scope, key, after_time, after FROM outcome_work
 WHERE (scope, key) NOT IN (SELECT * FROM unnest($1::text[], $2::text[]))
 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""

REACHED = "UPDATE outcome_work SET after_time = $2, after = $3 WHERE id = $1"

COALESCE = """
DELETE FROM outcome_work WHERE id IN (
    SELECT id FROM outcome_work WHERE scope = $1 AND key = $2 AND id <> $3 AND after = '' FOR UPDATE SKIP LOCKED)
"""

PENDING = """
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(queued_at)), 0)::float8 FROM outcome_work
"""

PAGE = {
    scope: f"""
SELECT trajectory_id, first_ingested_at, steps FROM trajectories
 WHERE {column} = $1 AND first_ingested_at <= $2 AND (first_ingested_at < $2 OR trajectory_id > $3)
 ORDER BY first_ingested_at DESC, trajectory_id LIMIT $4
"""
    for scope, column in (("scenario", "scenario_id"), ("window", "window_id"))
}

#: In the order in which the events' transactions lock them.
LOCK = f"""
SELECT {", ".join(NEEDED)} FROM trajectories WHERE trajectory_id = ANY($1::text[]) ORDER BY trajectory_id FOR UPDATE
"""
