"""The dashboard of what the services stand on."""

from __future__ import annotations

from deploy.monitoring.dashboards.board import Board, ask, rate

_OURS = 'namespace="flywheel"'

PLATFORM = Board(
    "platform",
    "Flywheel: Kafka and database",
    (
        (
            "Kafka",
            (
                ask(
                    "Is every partition fully replicated?",
                    ("sum(kafka_server_replicamanager_underreplicatedpartitions)", "under-replicated"),
                    ("sum(kafka_controller_kafkacontroller_activecontrollercount)", "active controllers"),
                    kind="number",
                ),
                ask(
                    "How many messages come in?",
                    (rate("kafka_server_brokertopicmetrics_messagesin_total", "topic", 'topic!=""'), "{{topic}}"),
                    unit="cps",
                ),
                ask(
                    "How many bytes come in?",
                    (rate("kafka_server_brokertopicmetrics_bytesin_total", "topic", 'topic!=""'), "{{topic}}"),
                    unit="Bps",
                ),
                ask(
                    "Which topics take the room?",
                    ("sum by (topic) (kafka_log_log_size)", "{{topic}}"),
                    unit="bytes", kind="stacked",
                ),
                ask(
                    "How far behind are the groups, as Kafka sees it?",
                    ("sum by (consumergroup, topic) (kafka_consumergroup_lag)", "{{consumergroup}} {{topic}}"),
                    note="Scaling goes by this. The recorder's own offsets are in Postgres and never behind these.",
                ),
            ),
        ),
        (
            "Postgres",
            (
                ask(
                    "Who is connected?",
                    (f"sum by (usename, state) (cnpg_backends_total{{{_OURS}}})", "{{usename}} {{state}}"),
                    (f'max(cnpg_pg_settings_setting{{{_OURS},name="max_connections"}})', "limit"),
                ),
                ask(
                    "How large is the database?",
                    (f"max by (datname) (cnpg_pg_database_size_bytes{{{_OURS}}})", "{{datname}}"),
                    unit="bytes",
                ),
                ask(
                    "Do the standbys keep up?",
                    (f"max by (pod) (cnpg_pg_replication_lag{{{_OURS}}})", "{{pod}}"),
                    unit="s",
                ),
                ask(
                    "How old is the last backup?",
                    (f"time() - max(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{{{_OURS}}})", "age"),
                    unit="s", kind="number",
                ),
                ask(
                    "Is the log archived?",
                    (f"max(increase(cnpg_pg_stat_archiver_failed_count{{{_OURS}}}[15m]))", "failed in 15 min"),
                ),
            ),
        ),
        (
            "Pods and volumes",
            (
                ask(
                    "How full are the volumes?",
                    (
                        f"1 - min by (persistentvolumeclaim) (kubelet_volume_stats_available_bytes{{{_OURS}}}"
                        f" / kubelet_volume_stats_capacity_bytes{{{_OURS}}})",
                        "{{persistentvolumeclaim}}",
                    ),
                    unit="percentunit",
                ),
                ask(
                    "How much memory do pods take?",
                    (
                        f'sum by (pod) (container_memory_working_set_bytes{{{_OURS},container!=""}})',
                        "{{pod}}",
                    ),
                    unit="bytes",
                ),
                ask(
                    "How many cores do pods use?",
                    (rate("container_cpu_usage_seconds_total", "pod", f'{_OURS},container!=""'), "{{pod}}"),
                ),
                ask(
                    "Does anything restart?",
                    (
                        f"sum by (pod) (increase(kube_pod_container_status_restarts_total{{{_OURS}}}[30m]))",
                        "{{pod}}",
                    ),
                ),
            ),
        ),
    ),
)  # fmt: skip
