"""The dashboard of the loop as a whole."""

from __future__ import annotations

from deploy.monitoring.dashboards.board import Board, ask, rate
from deploy.monitoring.objectives import OBJECTIVES

LOOP = Board(
    "loop",
    "Flywheel: the loop",
    (
        (
            "Now",
            (
                ask("Is everything ready?", ("min by (service) (flywheel_ready)", "{{service}}"), kind="number"),
                ask(
                    "Which version do agents run?",
                    ("sum by (channel, version) (flywheel_deployer_running_agents)", "{{channel}} {{version}}"),
                    kind="number",
                ),
                ask(
                    "Which alerts fire?",
                    ('count by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),
                    kind="number",
                ),
            ),
        ),
        (
            "From an event to a model",
            (
                ask("How many events come to rest?", (rate("flywheel_recorder_inserted_total"), "stored"), unit="cps"),
                ask(
                    "How many trajectories are closed, and how?",
                    (rate("flywheel_recorder_closed_total", "status"), "{{status}}"),
                    unit="cps", kind="stacked",
                ),
                ask(
                    "How much waits for a batch?",
                    ("max by (channel) (flywheel_archiver_waiting_trajectories)", "{{channel}}"),
                ),
                ask(
                    "When did batches become ready?",
                    ("sum by (channel) (increase(flywheel_archiver_batches_total[1h]))", "{{channel}} an hour"),
                ),
                ask(
                    "What became of training jobs?",
                    ("sum by (status) (increase(flywheel_trainer_jobs_total[1h]))", "{{status}} an hour"),
                    ("max(flywheel_trainer_unfinished_jobs)", "unfinished"),
                ),
                ask(
                    "When did agents get a new version?",
                    ("max by (channel) (flywheel_deployer_current_number)", "{{channel}}"),
                ),
            ),
        ),
        (
            "What is lost or late",
            (
                ask("Where do records wait?", ("sum by (topic) (flywheel_lag_records)", "{{topic}}")),
                ask(
                    "What goes to the dead letters?",
                    ("sum by (topic, reason) (increase(flywheel_dead_letters_total[1h]))", "{{topic}} {{reason}}"),
                    note="In an hour.",
                ),
                ask(
                    "How fast do the error budgets burn?",
                    *((f"({o.ratio('1h')}) / {1 - o.share:.4g}", o.name) for o in OBJECTIVES),
                    note="1: just used up over 30 days. Above 14.4 it pages.",
                ),
                ask("What is retried?", (rate("flywheel_retries_total", "check"), "{{check}}"), unit="cps"),
                ask(
                    "Do messages leave the outbox?", ("max(flywheel_outbox_age_seconds)", "oldest"), unit="s",
                ),
            ),
        ),
    ),
)  # fmt: skip
