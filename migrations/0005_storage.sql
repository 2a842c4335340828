-- Storage that lasts. Events are kept by day: ids are UUIDv7, whose first 48 bits are the milliseconds since 1970, so a range of
-- ids is a range of time, and the primary key stays on event_id alone. Dropping a day is dropping a table.
--
-- What there was so far becomes the DEFAULT partition, where ids live that belong to no day: those of another version than 7,
-- and those whose day has no partition. It is never dropped. The recorder makes the days, ahead of time; the archiver seals,
-- archives and drops them (flywheel.storage.days).
DROP VIEW steps, llm_calls, provider_accesses, rewards;
ALTER TABLE events RENAME TO events_default;
ALTER INDEX events_pkey RENAME TO events_default_pkey;
ALTER INDEX events_by_trajectory RENAME TO events_default_by_trajectory;

CREATE TABLE events (
    event_id      uuid        PRIMARY KEY,       -- what makes replaying a topic harmless; looked up by duplicates alone
    trajectory_id text        NOT NULL,
    seq           integer     NOT NULL,
    kind          text        NOT NULL,
    step          integer,
    agent_id      text        NOT NULL,
    time          timestamptz NOT NULL,
    ingested_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    digest        bytea       NOT NULL,
    src_partition integer     NOT NULL,
    src_offset    bigint      NOT NULL,
    body          text        NOT NULL
) PARTITION BY RANGE (event_id);
-- Everybody who reads events reads those of a trajectory: gateway, batches, validation; and what a day is made of is counted here.
CREATE INDEX events_by_trajectory ON events (trajectory_id, seq);
ALTER TABLE events ATTACH PARTITION events_default DEFAULT;

-- Rows that never change are frozen by the vacuum that inserts call for, once, instead of being rewritten later on. The days'
-- partitions have the same (flywheel.storage.days).
ALTER TABLE events_default SET (autovacuum_freeze_min_age = 0, toast.autovacuum_freeze_min_age = 0);

-- Every day that ever had a partition. Its row outlives it: it says where the archive is, and that nothing is taken any more.
CREATE TABLE event_days (
    day             date        PRIMARY KEY,     -- UTC
    state           text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'archived', 'dropped')),
    blocked         text,                        -- why a day that is past its time is not sealed yet
    rows            bigint,                      -- in the archive
    bytes           bigint,                      -- of the archive's data files
    strays          bigint,                      -- rows of other ids than UUIDv7: kept in the default partition, not archived
    manifest        text,
    manifest_sha256 text,
    made_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    sealed_at       timestamptz,
    archived_at     timestamptz,
    dropped_at      timestamptz,
    CHECK (state IN ('open', 'sealed') OR (rows IS NOT NULL AND manifest IS NOT NULL AND manifest_sha256 IS NOT NULL))
);

-- Which trajectories have events in an archived day, and how many: so that what was archived is never taken for lost.
CREATE TABLE archived_trajectories (
    trajectory_id text    NOT NULL,
    day           date    NOT NULL REFERENCES event_days,
    events        integer NOT NULL,
    PRIMARY KEY (trajectory_id, day)
);

-- A day that was dropped has no partition, so its late events come to the default one: refused there, or a replay would count
-- them twice. Rows come here so rarely that the look-up costs nothing.
CREATE FUNCTION refuse_expired_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    id_day date := (to_timestamp(('x' || substr(replace(NEW.event_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000)
                    AT TIME ZONE 'UTC')::date;
BEGIN
    IF EXISTS (SELECT FROM event_days WHERE day = id_day AND state = 'dropped') THEN
        RAISE check_violation USING CONSTRAINT = 'events_sealed',
              MESSAGE = format('event %s is of %s, which is archived and dropped', NEW.event_id, id_day);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_expired BEFORE INSERT ON events_default FOR EACH ROW
    WHEN (substr(NEW.event_id::text, 15, 1) = '7') EXECUTE FUNCTION refuse_expired_event();

-- Trajectories are updated by every batch that has events of theirs. Such an update writes no index (HOT) when no indexed column
-- changes and the page has room: so last_ingested_at is in no index, and pages are filled to 70 %. An open trajectory that has
-- been silent for long is found by when its first event came, which is earlier still.
DROP INDEX trajectories_open;
ALTER TABLE trajectories SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

-- One index for each thing that the gateway's listing is filtered by, in the order of the listing, so that a page is read and
-- nothing is sorted. `split` has two values, both of them frequent, and rewards change: they filter trajectories_recent.
-- trajectories_by_status also finds the open ones, for the recorder; trajectories_by_group (0001) a group's, for both.
CREATE INDEX trajectories_by_status ON trajectories (status, first_ingested_at DESC, trajectory_id);
CREATE INDEX trajectories_by_agent ON trajectories (agent_id, first_ingested_at DESC, trajectory_id);
CREATE INDEX trajectories_by_scenario ON trajectories (scenario_id, first_ingested_at DESC, trajectory_id)
    WHERE scenario_id IS NOT NULL;
CREATE INDEX trajectories_by_window ON trajectories (window_id, first_ingested_at DESC, trajectory_id);
CREATE INDEX trajectories_by_channel ON trajectories (channel, first_ingested_at DESC, trajectory_id) WHERE channel IS NOT NULL;
CREATE INDEX trajectories_by_version ON trajectories (model_version, first_ingested_at DESC, trajectory_id)
    WHERE model_version IS NOT NULL;

-- A dozen rows that every batch updates: room for many versions of them in their page.
ALTER TABLE stream_offsets SET (fillfactor = 10);
-- A queue: empty most of the time, however many rows went through it. Vacuumed by what was deleted, not by a share of nothing.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- The same faces as before (0001), of all partitions.
CREATE VIEW steps AS
SELECT trajectory_id, step, seq, time, event_id,
       (body::json ->> 'reward')::double precision AS reward,
       body::json -> 'environment_state'           AS environment_state,
       body::json -> 'observation'                 AS observation,
       body::json ->> 'reasoning'                  AS reasoning,
       body::json -> 'action'                      AS action,
       coalesce((body::json ->> 'done')::boolean, false) AS done,
       body::json                                  AS body
  FROM events WHERE kind = 'step';

CREATE VIEW llm_calls AS
SELECT trajectory_id, step, seq, time, event_id,
       body::json ->> 'model'                AS model,
       body::json ->> 'model_version'        AS model_version,
       coalesce(body::json ->> 'purpose', 'action') AS purpose,
       body::json ->> 'response'             AS response,
       body::json -> 'messages'              AS messages,
       body::json -> 'usage'                 AS usage,
       (body::json ->> 'latency_ms')::double precision AS latency_ms,
       body::json ->> 'finish_reason'        AS finish_reason,
       body::json -> 'prompt_token_ids'      AS prompt_token_ids,
       body::json -> 'completion_token_ids'  AS completion_token_ids,
       body::json -> 'completion_logprobs'   AS completion_logprobs,
       body::json                            AS body
  FROM events WHERE kind = 'llm_call';

CREATE VIEW provider_accesses AS
SELECT trajectory_id, step, seq, time, event_id,
       body::json ->> 'provider' AS provider,
       body::json -> 'query'     AS query,
       body::json -> 'data'      AS data,
       body::json                AS body
  FROM events WHERE kind = 'provider_access';

CREATE VIEW rewards AS
SELECT trajectory_id, step, seq, time, event_id,
       body::json ->> 'reward_kind'               AS reward_kind,
       coalesce(body::json ->> 'name', 'reward')  AS name,
       (body::json ->> 'value')::double precision AS value,
       body::json ->> 'source'                    AS source,
       body::json                                 AS body
  FROM events WHERE kind = 'reward';
