-- Consumers that paused because too much of what came were dead letters. Kept here, so that a restart, another replica or a
-- rebalance stays paused until a person releases it. A row is never removed: what happened stays to be read.
CREATE TABLE brakes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason      text        NOT NULL,             -- in words
    share       double precision NOT NULL,        -- of dead letters in the window that tripped it, 0 to 1
    records     integer     NOT NULL,             -- how many records that window held
    causes      jsonb       NOT NULL,             -- dead letters in it by their reason
    examples    jsonb       NOT NULL,             -- a few: partition, offset, reason, message
    released_at timestamptz,
    released_by text,
    allowance   bigint      NOT NULL DEFAULT 0    -- records still to be handled unjudged, as the release said
);
CREATE UNIQUE INDEX brakes_on ON brakes (consumer, topic) WHERE released_at IS NULL;
CREATE INDEX brakes_latest ON brakes (consumer, topic, id);
