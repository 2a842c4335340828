-- A job whose batch is sound and teaches nothing (every score of every group the same) is skipped, with the reason: no failure.
ALTER TABLE training_jobs DROP CONSTRAINT training_jobs_status_check;
ALTER TABLE training_jobs ADD CONSTRAINT training_jobs_status_check
    CHECK (status IN ('pending', 'preparing', 'scoring', 'training', 'evaluating', 'uploading', 'completed', 'skipped', 'failed',
                      'cancelled'));
ALTER TABLE training_jobs
    ADD COLUMN reason        text,                          -- skipped: a short label, no_signal; error says it in words
    ADD COLUMN groups_scored integer NOT NULL DEFAULT 0,    -- how far scoring is; 0 of 0: the recorded reward is the score
    ADD COLUMN groups_total  integer NOT NULL DEFAULT 0;
DROP INDEX training_jobs_unfinished;
CREATE INDEX training_jobs_unfinished ON training_jobs (channel, created_at)
    WHERE status NOT IN ('completed', 'skipped', 'failed', 'cancelled');

-- Every request to a judge, noted before it is sent: what it may cost counts at once, so that no crash hides money from the budget.
-- An answer that was found usable is kept, and the same question is never paid twice.
CREATE TABLE judge_calls (
    call_id           text        PRIMARY KEY,
    batch_id          text        NOT NULL,
    judge_model       text        NOT NULL,
    prompt_hash       text        NOT NULL,               -- of the instructions, rubric included
    content_hash      text        NOT NULL,               -- of the attempts as shown, in their order
    outcome           text        NOT NULL DEFAULT 'asked',  -- asked | answered | unusable | and what else went wrong
    detail            text,
    prompt_tokens     bigint      NOT NULL,               -- estimated, until the judge said
    completion_tokens bigint      NOT NULL,
    usd               double precision NOT NULL,          -- by the prices that were set then
    latency_s         double precision,
    verdict           jsonb,                              -- answered: by content key, score and explanation
    asked_at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX judge_calls_answered ON judge_calls (prompt_hash, judge_model, content_hash) WHERE verdict IS NOT NULL;
CREATE INDEX judge_calls_by_batch ON judge_calls (batch_id);
CREATE INDEX judge_calls_by_time ON judge_calls (asked_at);

-- What each trajectory of a batch was found worth, by whom, and how that came about. Only for batches that were scored by other
-- than the recorded reward; scored again, the row is replaced.
CREATE TABLE judgments (
    batch_id      text             NOT NULL,
    trajectory_id text             NOT NULL,
    group_id      text             NOT NULL,
    scorer        text             NOT NULL,              -- who gave the score
    score         double precision,                       -- null: it has none, unscored says why
    unscored      text,
    components    jsonb            NOT NULL DEFAULT '{}',
    fallback      text,                                   -- why the judge's place was taken by another scorer
    judge_model   text,
    prompt_hash   text,
    content_key   text,                                   -- digest of the trajectory as shown: equal play, equal key
    rank          integer,                                -- in its group, 1 is best, over all passes
    normalised    double precision,                       -- in its group, 0 the worst, 1 the best
    reasoning     jsonb            NOT NULL DEFAULT '[]', -- the judge's words, pass by pass
    judge_calls   text[]           NOT NULL DEFAULT '{}', -- tokens, cost and latency are there
    cached        boolean          NOT NULL DEFAULT false,
    judged_at     timestamptz      NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (batch_id, trajectory_id)
);
CREATE INDEX judgments_by_trajectory ON judgments (trajectory_id);
