-- What a scenario's trajectories have been worth so far, by the scorer whose scale that is. The trainer brings it up to date in
-- the transaction that ends a job, so that no reward counts twice, whatever was tried and killed before.
CREATE TABLE reward_baselines (
    channel    text             NOT NULL,
    scorer     text             NOT NULL,
    scenario   text             NOT NULL,
    weight     double precision NOT NULL,              -- sum of the weights of the rewards seen, and of their squares
    weight_sq  double precision NOT NULL,
    mean       double precision NOT NULL,
    m2         double precision NOT NULL,              -- weighted sum of squared distances to the mean
    job_id     text             NOT NULL,              -- the last job that told it something
    updated_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (channel, scorer, scenario)
);
CREATE INDEX reward_baselines_recent ON reward_baselines (channel, updated_at DESC);

-- The baselines as they were when the job was first taken up: every try of it compares with the same ones.
ALTER TABLE training_jobs ADD COLUMN baselines jsonb;
