"""The dashboards of the recorder and the archiver."""

from __future__ import annotations

from deploy.monitoring.dashboards.board import Board, ask, quantile, rate


def _consumer(topic: str) -> tuple[str, str, str]:
    """Return what every consumer shows of its topic: lag, records handled, dead letters."""
    one = f'topic="{topic}"'
    return (
        f"sum by (partition) (flywheel_lag_records{{{one}}})",
        rate("flywheel_consumed_total", matching=one),
        rate("flywheel_dead_letters_total", "reason", one),
    )


_EVENTS = _consumer("flywheel.events")
_CLOSED = _consumer("flywheel.trajectories")

RECORDER = Board(
    "recorder",
    "Flywheel: recorder",
    (
        (
            "Keeping up",
            (
                ask("How far behind is each partition?", (_EVENTS[0], "{{partition}}")),
                ask(
                    "How old is what waits?",
                    ('max by (partition) (flywheel_lag_seconds{topic="flywheel.events"})', "{{partition}}"),
                    ('max(flywheel_brake{topic="flywheel.events"})', "paused by the brake"),
                    unit="s",
                ),
                ask(
                    "How long until an event is durable?",
                    (quantile(0.5, "flywheel_recorder_durable_seconds"), "half"),
                    (quantile(0.99, "flywheel_recorder_durable_seconds"), "99 %"),
                    unit="s",
                ),
                ask(
                    "What comes, and what of it is new?",
                    (_EVENTS[1], "handled"),
                    (rate("flywheel_recorder_inserted_total"), "new"),
                    (rate("flywheel_recorder_duplicate_total"), "seen before"),
                    unit="cps",
                ),
                ask(
                    "Which kinds of events?", (rate("flywheel_recorder_inserted_total", "kind"), "{{kind}}"), unit="cps"
                ),
            ),
        ),
        (
            "Writing",
            (
                ask(
                    "How long does a transaction take?",
                    (quantile(0.5, "flywheel_recorder_write_seconds"), "half"),
                    (quantile(0.99, "flywheel_recorder_write_seconds"), "99 %"),
                    unit="s",
                ),
                ask(
                    "How large is a batch?",
                    (quantile(0.5, "flywheel_batch_records", matching='topic="flywheel.events"'), "half"),
                    (quantile(0.99, "flywheel_batch_records", matching='topic="flywheel.events"'), "99 %"),
                    note="At its most all the time: the recorder is the bottleneck.",
                ),
                ask(
                    "What does it wait for?",
                    (rate("flywheel_blocked_seconds_total", "on", 'topic="flywheel.events"'), "{{on}}"),
                    note="Seconds a second. write near 1: the database is the bottleneck; empty: nothing to do.",
                ),
                ask(
                    "How full are its batches?",
                    (quantile(0.5, "flywheel_batch_utilisation_ratio", matching='topic="flywheel.events"'), "half"),
                    unit="percentunit",
                ),
                ask("What is poison?", (_EVENTS[2], "{{reason}}"), unit="cps"),
                ask(
                    "Were batches dropped because another process took over?",
                    (rate("flywheel_fenced_total", "topic"), "{{topic}}"),
                    unit="cps",
                ),
            ),
        ),
        (
            "Trajectories",
            (
                ask("How many are open?", ("max(flywheel_recorder_open_trajectories)", "open")),
                ask(
                    "How do they end, and do late events revise them?",
                    (rate("flywheel_recorder_closed_total", "status"), "{{status}}"),
                    (rate("flywheel_recorder_revised_total"), "revised"),
                    unit="cps",
                ),
            ),
        ),
    ),
)

ARCHIVER = Board(
    "archiver",
    "Flywheel: archiver",
    (
        (
            "Keeping up",
            (
                ask("How far behind is each partition?", (_CLOSED[0], "{{partition}}")),
                ask(
                    "What becomes of closed trajectories?",
                    (rate("flywheel_archiver_queued_total"), "queued"),
                    (rate("flywheel_archiver_skipped_total", "reason"), "skipped: {{reason}}"),
                    (rate("flywheel_archiver_late_total"), "revised too late"),
                    unit="cps", kind="stacked",
                ),
                ask("What is poison?", (_CLOSED[2], "{{reason}}"), unit="cps"),
            ),
        ),
        (
            "Batches",
            (
                ask(
                    "How much waits for a batch?",
                    ("max by (channel) (flywheel_archiver_waiting_trajectories)", "{{channel}}"),
                ),
                ask(
                    "How many batches became ready?",
                    ("sum by (channel) (increase(flywheel_archiver_batches_total[1h]))", "{{channel}} an hour"),
                ),
                ask(
                    "How long does a batch take to write?",
                    (quantile(0.5, "flywheel_archiver_batch_seconds"), "half"),
                    (quantile(0.99, "flywheel_archiver_batch_seconds"), "99 %"),
                    unit="s",
                ),
                ask(
                    "How much is archived?",
                    ("sum(increase(flywheel_archiver_archived_bytes_total[1h]))", "bytes an hour"),
                    unit="bytes",
                ),
                ask(
                    "How many trajectories are archived?",
                    ("sum(increase(flywheel_archiver_archived_trajectories_total[1h]))", "an hour"),
                ),
            ),
        ),
    ),
)  # fmt: skip
