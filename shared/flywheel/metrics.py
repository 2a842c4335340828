"""The typed catalogue of metrics: every name, its unit and what it means. Services observe; nobody else declares.

Names begin with ``flywheel_`` and, where one service alone has them, its name; they end in their unit (``_seconds``,
``_bytes``, what is counted; ``_total`` for counters). Labels are few and bounded: never an id.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from flywheel.weighted import WeightedHistogram

#: Seconds, from a millisecond to minutes: writes, handlers, latencies.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
_SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)

# -- every service -------------------------------------------------------------------------------------------
READY = Gauge("flywheel_ready", "1 while the service is ready, else 0", ["service"])
RETRIES = Counter("flywheel_retries_total", "transient errors that were retried in place", ["check"])

TRACE_SPANS = Counter(
    "flywheel_trace_spans_total",
    "sampled spans: exported; failed (the collector did not take them); dropped (the queue was full)",
    ["outcome"],
)

# -- consumers of any topic ----------------------------------------------------------------------------------
CONSUMED = Counter("flywheel_consumed_total", "records whose handling is durable, dead letters included", ["topic"])
BATCH_RECORDS = Histogram("flywheel_batch_records", "records handled in one transaction", ["topic"], buckets=_SIZES)
BATCH_UTILISATION = Histogram(
    "flywheel_batch_utilisation_ratio",
    "records handled in one transaction, as a share of the most it may hold; near 1: the consumer is the bottleneck",
    ["topic"],
    buckets=_SHARES,
)
HANDLE_SECONDS = Histogram(
    "flywheel_handle_seconds", "one batch, from its first record in hand to its commit", ["topic"], buckets=_SECONDS
)
LAG_RECORDS = Gauge("flywheel_lag_records", "records in the broker that are not durable yet", ["topic", "partition"])
LAG_SECONDS = Gauge(
    "flywheel_lag_seconds",
    "age of the oldest record that is not durable yet, by its stamp in Kafka; 0 when caught up",
    ["topic", "partition"],
)
BLOCKED = Counter(
    "flywheel_blocked_seconds_total",
    "time a consumer spent waiting: empty (no records), write (the database), retry (between attempts), bury (dead "
    "letters), brake (paused). Fetching and writing overlap, so the sum may exceed the time that passed",
    ["topic", "on"],
)
DEAD = Counter("flywheel_dead_letters_total", "records sent to the dead letters", ["topic", "reason"])
BRAKE = Gauge("flywheel_brake", "1 while the consumer is paused because of too many dead letters, else 0", ["topic"])
FENCED = Counter("flywheel_fenced_total", "batches dropped because another process went on from our offsets", ["topic"])

# -- outbox --------------------------------------------------------------------------------------------------
OUTBOX_DEPTH = Gauge("flywheel_outbox_messages", "committed messages that are not published yet")
OUTBOX_AGE = Gauge("flywheel_outbox_age_seconds", "age of the oldest committed message that is not published yet")
PUBLISHED = Counter("flywheel_outbox_published_total", "messages published from the outbox", ["topic"])

# -- recorder ------------------------------------------------------------------------------------------------
EVENTS_INSERTED = Counter("flywheel_recorder_inserted_total", "events stored for the first time", ["kind"])
EVENTS_DUPLICATE = Counter("flywheel_recorder_duplicate_total", "events that were stored before, dropped")
WRITE_SECONDS = Histogram("flywheel_recorder_write_seconds", "one transaction of the recorder", buckets=_SECONDS)
DURABLE_SECONDS = WeightedHistogram(
    "flywheel_recorder_durable_seconds",
    "from a record's stamp in Kafka to its commit; every record counts",
    buckets=_SECONDS,
)
TRAJECTORIES_OPEN = Gauge("flywheel_recorder_open_trajectories", "trajectories that have not ended yet")
TRAJECTORIES_CLOSED = Counter("flywheel_recorder_closed_total", "trajectories closed", ["status"])
TRAJECTORIES_REVISED = Counter("flywheel_recorder_revised_total", "revisions after the close, by events or outcomes")
DAYS_AHEAD = Gauge("flywheel_recorder_ahead_days", "days after today whose partition is made")

OUTCOMES = Counter(
    "flywheel_recorder_outcomes_total",
    "outcomes that came: new, correction, retraction (stored); duplicate, overtaken (dropped)",
    ["change"],
)
OUTCOME_ENTRIES = Counter("flywheel_recorder_outcome_entries_total", "reward entries written, removed", ["change"])
OUTCOMES_PENDING = Gauge(
    "flywheel_recorder_outcomes_pending", "times that a scenario or window has yet to be judged by its outcomes"
)
OUTCOMES_PENDING_AGE = Gauge(
    "flywheel_recorder_outcomes_pending_age_seconds", "how long the oldest of these has been waiting"
)

# -- archiver ------------------------------------------------------------------------------------------------
ARCHIVE_QUEUED = Counter("flywheel_archiver_queued_total", "closed trajectories that were queued for training")
ARCHIVE_SKIPPED = Counter("flywheel_archiver_skipped_total", "closed trajectories not trained on", ["reason"])
ARCHIVE_LATE = Counter("flywheel_archiver_late_total", "revisions of trajectories that were in a batch already")
ARCHIVE_WAITING = Gauge(
    "flywheel_archiver_waiting_trajectories", "queued trajectories that are in no batch yet", ["channel"]
)
BATCHES_READY = Counter("flywheel_archiver_batches_total", "batches that became ready", ["channel"])
BATCH_SECONDS = Histogram("flywheel_archiver_batch_seconds", "one batch: written and marked ready", buckets=_SECONDS)
ARCHIVED_BYTES = Counter("flywheel_archiver_archived_bytes_total", "bytes of data files of ready batches")
ARCHIVED_TRAJECTORIES = Counter("flywheel_archiver_archived_trajectories_total", "trajectories in ready batches")
EVENT_DAYS = Gauge("flywheel_archiver_event_days", "days of events: open, sealed, archived, dropped", ["state"])
OLDEST_DAY = Gauge("flywheel_archiver_oldest_age_days", "age of the oldest day whose events are in the database")
OVERDUE_DAYS = Gauge("flywheel_archiver_overdue_days", "days past their time whose events are in the database still")
DAY_SECONDS = Histogram(
    "flywheel_archiver_day_seconds", "one day: written to the object store and read back", buckets=_SECONDS
)
DAY_EVENTS = Counter("flywheel_archiver_day_events_total", "events in archived days")
DAY_BYTES = Counter("flywheel_archiver_day_bytes_total", "bytes of data files of archived days")

# -- trainer -------------------------------------------------------------------------------------------------
TRAINING_JOBS = Counter(
    "flywheel_trainer_jobs_total", "jobs ended: completed, skipped, failed, lost to another", ["status"]
)
TRAINING_LOOKS = Counter("flywheel_trainer_looks_total", "looks for a job to do that found none")
TRAINING_WAITING = Gauge("flywheel_trainer_unfinished_jobs", "jobs pending or in progress")
TRAINING_SECONDS = Histogram(
    "flywheel_trainer_job_seconds", "one completed job, from its batch to its stored model", buckets=_SECONDS
)
TRAINING_DROPPED = Counter("flywheel_trainer_dropped_total", "what could not be trained on", ["kind", "reason"])
SCORED = Counter("flywheel_trainer_scored_total", "trajectories that got a score, by who gave it", ["scorer"])
UNSCORED = Counter("flywheel_trainer_unscored_total", "trajectories without a score, never taken for 0", ["reason"])
JUDGE_CALLS = Counter("flywheel_trainer_judge_calls_total", "requests to the judge, by what came of them", ["outcome"])
JUDGE_TOKENS = Counter("flywheel_trainer_judge_tokens_total", "tokens of requests and answers", ["kind"])
JUDGE_COST = Counter("flywheel_trainer_judge_usd_total", "what the judge cost, in US dollars, by the prices set")
JUDGE_SECONDS = Histogram("flywheel_trainer_judge_seconds", "one request to the judge", buckets=_SECONDS)
JUDGE_RETRIES = Counter(
    "flywheel_trainer_judge_retries_total", "requests repeated: after a failed one, or to correct an answer", ["why"]
)
JUDGE_CACHED = Counter("flywheel_trainer_judge_cached_total", "questions that had been answered and paid before")
JUDGE_FALLBACKS = Counter(
    "flywheel_trainer_judge_fallbacks_total", "groups that the judge did not score, by reason", ["reason"]
)

# -- deployer ------------------------------------------------------------------------------------------------
MODELS_REGISTERED = Counter("flywheel_deployer_registered_total", "models that got their version", ["origin"])
MODELS_WITHHELD = Counter("flywheel_deployer_withheld_total", "registered models that the rules did not deploy")
DEPLOYED_NUMBER = Gauge(
    "flywheel_deployer_current_number", "number of the version that a channel's agents run", ["channel"]
)
ACKS = Counter("flywheel_deployer_acks_total", "what agents said of deployments: loaded or failed", ["status"])
AGENTS_RUNNING = Gauge(
    "flywheel_deployer_running_agents", "agents that last said they run a version", ["channel", "version"]
)

# -- gateway -------------------------------------------------------------------------------------------------
REQUESTS = Counter("flywheel_gateway_requests_total", "requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "flywheel_gateway_request_seconds", "one request, to the last byte of its answer", ["route"], buckets=_SECONDS
)
REQUESTS_IN_FLIGHT = Gauge("flywheel_gateway_requests_in_flight", "requests being answered")
EXPORTED = Counter("flywheel_gateway_exported_total", "trajectories written by exports")


def exposition(accept: str) -> tuple[bytes, str]:
    """Return every metric and its media type, in what ``accept`` asks for: exemplars come with OpenMetrics alone."""
    encode, media_type = choose_encoder(accept)
    return encode(REGISTRY), media_type
