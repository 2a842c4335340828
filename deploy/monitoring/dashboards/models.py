"""The dashboards of training and rollout, and of the gateway that shows them."""

from __future__ import annotations

from deploy.monitoring.dashboards.board import Board, ask, quantile, rate

_TRAINER = 'namespace="flywheel",deployment="trainer"'
TRAINING = Board(
    "training",
    "Flywheel: training",
    (
        (
            "Jobs",
            (
                ask("How many jobs are unfinished?", ("max(flywheel_trainer_unfinished_jobs)", "jobs"), kind="number"),
                ask(
                    "How do jobs end?",
                    ("sum by (status) (increase(flywheel_trainer_jobs_total[1h]))", "{{status}} an hour"),
                ),
                ask(
                    "How long does a job take?",
                    (quantile(0.5, "flywheel_trainer_job_seconds"), "half"),
                    (quantile(0.99, "flywheel_trainer_job_seconds"), "99 %"),
                    unit="s",
                ),
                ask(
                    "What could not be trained on?",
                    ("sum by (kind, reason) (increase(flywheel_trainer_dropped_total[1h]))", "{{kind}}: {{reason}}"),
                    kind="stacked",
                ),
            ),
        ),
        (
            "The pod",
            (
                ask(
                    "Is it there?",
                    (f"sum(kube_deployment_status_replicas_available{{{_TRAINER}}})", "pods"),
                ),
                ask(
                    "How much memory does it take?",
                    (
                        'sum by (pod) (container_memory_working_set_bytes{namespace="flywheel",pod=~"trainer-.*",'
                        'container="service"})',
                        "{{pod}}",
                    ),
                    unit="bytes",
                ),
                ask(
                    "How many cores does it use?",
                    (
                        rate(
                            "container_cpu_usage_seconds_total", "pod",
                            'namespace="flywheel",pod=~"trainer-.*",container="service"',
                        ),
                        "{{pod}}",
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip

ROLLOUT = Board(
    "rollout",
    "Flywheel: rollout",
    (
        (
            "Versions",
            (
                ask(
                    "Which versions do agents run?",
                    ("sum by (channel, version) (flywheel_deployer_running_agents)", "{{channel}} {{version}}"),
                    kind="stacked",
                ),
                ask(
                    "Which version is the current one?",
                    ("max by (channel) (flywheel_deployer_current_number)", "{{channel}}"),
                    note="The number of the version: it only rises.",
                ),
                ask(
                    "Do agents take up what they are given?",
                    ("sum by (status) (increase(flywheel_deployer_acks_total[10m]))", "{{status}}"),
                ),
                ask(
                    "Where do models come from, and which were withheld?",
                    ("sum by (origin) (increase(flywheel_deployer_registered_total[1h]))", "{{origin}} an hour"),
                    ("sum(increase(flywheel_deployer_withheld_total[1h]))", "withheld an hour"),
                ),
            ),
        ),
        (
            "The deployer",
            (
                ask(
                    "Is it behind?",
                    ('sum by (topic) (flywheel_lag_records{topic=~"flywheel.models|flywheel.acks"})', "{{topic}}"),
                ),
                ask(
                    "How long does a model take to be registered?",
                    (quantile(0.99, "flywheel_handle_seconds", matching='topic="flywheel.models"'), "99 %"),
                    unit="s",
                ),
            ),
        ),
    ),
)

_REAL = 'route!~"/healthz|/readyz|/metrics"'
GATEWAY = Board(
    "gateway",
    "Flywheel: gateway",
    (
        (
            "Requests",
            (
                ask(
                    "Who asks for what?",
                    (rate("flywheel_gateway_requests_total", "route", _REAL), "{{route}}"),
                    unit="reqps", kind="stacked",
                ),
                ask(
                    "How are they answered?",
                    (rate("flywheel_gateway_requests_total", "status", _REAL), "{{status}}"),
                    unit="reqps",
                ),
                ask(
                    "How long do they take?",
                    (quantile(0.5, "flywheel_gateway_request_seconds", matching=_REAL), "half"),
                    (quantile(0.99, "flywheel_gateway_request_seconds", matching=_REAL), "99 %"),
                    unit="s",
                ),
                ask(
                    "Which routes are slow?",
                    (quantile(0.99, "flywheel_gateway_request_seconds", "route", _REAL), "{{route}}"),
                    unit="s",
                ),
                ask(
                    "How many are being answered?",
                    ("sum by (pod) (flywheel_gateway_requests_in_flight)", "{{pod}}"),
                ),
                ask("How much is exported?", (rate("flywheel_gateway_exported_total"), "trajectories"), unit="cps"),
            ),
        ),
    ),
)  # fmt: skip
