-- Rewards that come later: outcomes, the ledger of the reward entries that they gave, and sums that are exact.

-- A number that Postgres's double precision takes for out of range is 0 there: the contract lets none through that is
-- too large, but any that is too small to be told from 0.
CREATE FUNCTION flywheel_number(literal text) RETURNS double precision LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN CASE WHEN pg_input_is_valid(literal, 'double precision') THEN literal::double precision ELSE 0 END;

-- The double nearest to an exact sum of doubles; null from 2^1024 - 2^970 on, where rounding leaves their range. Such a sum
-- has no digit below those of the smallest double, so that nothing can be too small.
CREATE FUNCTION flywheel_double(total numeric) RETURNS double precision LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN abs(total) < 179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880177904174497792
            THEN total::double precision END;

-- reward_sum and reward_count: the trajectory's own events. outcome_sum and outcome_count: entries of the ledger below. Both
-- sums are exact, so that they do not depend on the order in which anything came.
ALTER TABLE trajectories
    DROP COLUMN total_reward,
    ALTER COLUMN reward_sum DROP DEFAULT,
    ALTER COLUMN reward_sum TYPE numeric USING reward_sum::text::numeric,
    ALTER COLUMN reward_sum SET DEFAULT 0,
    ADD COLUMN outcome_sum   numeric NOT NULL DEFAULT 0,
    ADD COLUMN outcome_count integer NOT NULL DEFAULT 0;
ALTER TABLE trajectories ADD COLUMN total_reward double precision GENERATED ALWAYS AS (
    CASE WHEN reward_count + outcome_count > 0 THEN flywheel_double(reward_sum + outcome_sum) END) STORED;

-- The newest revision of everything that outcomes were about. A retracted one stays: an older revision must not come back.
CREATE TABLE outcomes (
    scope         text        NOT NULL CHECK (scope IN ('scenario', 'window')),
    key           text        NOT NULL,          -- the scenario or window
    subject       text        NOT NULL,
    name          text        NOT NULL,
    source        text        NOT NULL,
    outcome_id    uuid        NOT NULL,
    revision      integer     NOT NULL,
    retracted     boolean     NOT NULL,
    time          timestamptz NOT NULL,
    digest        bytea       NOT NULL,          -- of what it says: facts, rules, retracted
    src_partition integer     NOT NULL,
    src_offset    bigint      NOT NULL,
    body          text        NOT NULL,          -- as it arrived
    received_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, key, subject, name, source)
);

-- Scenarios and windows whose trajectories have to be judged anew, and how far that is: from the newest trajectory by its first
-- ingestion (the order of trajectories_by_scenario and trajectories_by_window) to the one in after_time and after.
CREATE TABLE outcome_work (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope      text        NOT NULL,
    key        text        NOT NULL,
    after_time timestamptz NOT NULL DEFAULT '9999-12-31 00:00+00',
    after      text        NOT NULL DEFAULT '',
    queued_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX outcome_work_by_key ON outcome_work (scope, key);

-- The reward entries that did not come as events. The key is what keeps a correction from adding up.
CREATE TABLE reward_entries (
    trajectory_id text             NOT NULL,
    step          integer          NOT NULL,     -- -1: the trajectory as a whole
    scope         text             NOT NULL,     -- with key, subject, name, source: the outcome
    key           text             NOT NULL,
    subject       text             NOT NULL,
    name          text             NOT NULL,
    source        text             NOT NULL,
    kind          text             NOT NULL DEFAULT 'outcome',
    value         double precision NOT NULL,
    written_at    timestamptz      NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (trajectory_id, step, scope, key, subject, name, source, kind)
);

CREATE OR REPLACE VIEW steps AS
SELECT trajectory_id, step, seq, time, event_id,
       flywheel_number(body::json ->> 'reward')    AS reward,
       body::json -> 'environment_state'           AS environment_state,
       body::json -> 'observation'                 AS observation,
       body::json ->> 'reasoning'                  AS reasoning,
       body::json -> 'action'                      AS action,
       coalesce((body::json ->> 'done')::boolean, false) AS done,
       body::json                                  AS body
  FROM events WHERE kind = 'step';

CREATE OR REPLACE VIEW llm_calls AS
SELECT trajectory_id, step, seq, time, event_id,
       body::json ->> 'model'                AS model,
       body::json ->> 'model_version'        AS model_version,
       coalesce(body::json ->> 'purpose', 'action') AS purpose,
       body::json ->> 'response'             AS response,
       body::json -> 'messages'              AS messages,
       body::json -> 'usage'                 AS usage,
       flywheel_number(body::json ->> 'latency_ms') AS latency_ms,
       body::json ->> 'finish_reason'        AS finish_reason,
       body::json -> 'prompt_token_ids'      AS prompt_token_ids,
       body::json -> 'completion_token_ids'  AS completion_token_ids,
       body::json -> 'completion_logprobs'   AS completion_logprobs,
       body::json                            AS body
  FROM events WHERE kind = 'llm_call';

CREATE OR REPLACE VIEW rewards AS
SELECT trajectory_id, step, seq, time, event_id,
       body::json ->> 'reward_kind'               AS reward_kind,
       coalesce(body::json ->> 'name', 'reward')  AS name,
       flywheel_number(body::json ->> 'value')    AS value,
       body::json ->> 'source'                    AS source,
       body::json                                 AS body
  FROM events WHERE kind = 'reward';

-- Every reward of every trajectory, wherever it came from. The total is the sum of the kinds immediate and outcome.
CREATE VIEW reward_ledger AS
SELECT trajectory_id, step, 'immediate' AS kind, 'reward' AS name, reward AS value, NULL AS source, NULL AS subject,
       'step' AS origin
  FROM steps WHERE reward IS NOT NULL
UNION ALL
SELECT trajectory_id, step, reward_kind, name, value, source, NULL, 'event' FROM rewards
UNION ALL
SELECT trajectory_id, nullif(step, -1), kind, name, value, source, subject, 'outcome' FROM reward_entries;
