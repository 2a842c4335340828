"""The alerts. ``page`` wakes somebody: data or people wait now. ``ticket`` is for the next working day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from deploy.monitoring.objectives import AVAILABILITY, DURABILITY, FAST, LATENCY, SLOW

NAMESPACE = "flywheel"
_OURS = f'namespace="{NAMESPACE}"'


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: when it fires, after how long, how much it matters, and in one sentence what is the matter."""

    name: str
    severity: Literal["page", "ticket"]
    expression: str
    summary: str
    lasting: str = "0m"

    def rule(self) -> dict[str, Any]:
        """Return the alerting rule as Prometheus reads it; the runbook's base comes from the label of that server."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "runbook_url": f"{{{{ $externalLabels.runbooks }}}}/{self.name}.md",
            },
        }


def risen(counter: str, by: str, window: str) -> str:
    """Return the expression that is true where a counter rose in ``window``, its first appearance included.

    ``increase`` alone does not see the first increment of a label: the series begins with it.
    """
    before = f"sum by ({by}) ({counter} offset {window})"
    return f"(sum by ({by}) (increase({counter}[{window}])) > 0 or (sum by ({by}) ({counter}) > 0 unless {before}))"


EVENTS = (
    Alert(
        "EventsLate", "page", DURABILITY.burning(*FAST),
        "Events take too long to become durable: the month's budget would be gone in two days.",
    ),
    Alert(
        "EventsLateSlowly", "ticket", DURABILITY.burning(*SLOW),
        "Events take too long to become durable: the month's budget would be gone in five days.",
    ),
    Alert(
        "LagWithoutProgress", "page",
        "sum by (topic) (flywheel_lag_records) > 0\n"
        "unless on (topic) sum by (topic) (increase(flywheel_consumed_total[10m])) > 0",
        "Records of {{ $labels.topic }} wait and none is handled.", "10m",
    ),
    Alert(
        "ConsumerPaused", "page", "max by (topic) (flywheel_brake) > 0",
        "Too much of {{ $labels.topic }} is poison: its consumer pauses until a person releases it.",
    ),
    Alert(
        "DeadLetters", "ticket", risen("flywheel_dead_letters_total", "topic, reason", "10m"),
        "Records of {{ $labels.topic }} went to the dead letters: {{ $labels.reason }}.",
    ),
    Alert(
        "OutboxOld", "page", "max(flywheel_outbox_age_seconds) > 60",
        "A committed message has been waiting for {{ $value | humanizeDuration }} to be published.", "5m",
    ),
)  # fmt: skip

LOOP = (
    Alert(
        "ArchiveGap", "ticket",
        "sum(increase(flywheel_recorder_closed_total[6h]))\n"
        "> 1.02 * (sum(increase(flywheel_archiver_queued_total[6h]))"
        " + (sum(increase(flywheel_archiver_skipped_total[6h])) or vector(0))) + 10",
        "Trajectories were closed that the archiver has not seen.", "30m",
    ),
    Alert(
        "NothingReady", "ticket",
        "max by (channel) (flywheel_archiver_waiting_trajectories) > 0\n"
        "and on (channel) max by (channel) (flywheel_archiver_waiting_trajectories offset 1d) > 0\n"
        f"unless on (channel) {risen('flywheel_archiver_batches_total', 'channel', '1d')}",
        "Trajectories of channel {{ $labels.channel }} wait, and no batch became ready for a day.", "15m",
    ),
    Alert(
        "TrainingFailed", "ticket", risen('flywheel_trainer_jobs_total{status="failed"}', "status", "30m"),
        "A training job has failed for good.",
    ),
    Alert(
        "TrainingStuck", "ticket",
        "min_over_time(max(flywheel_trainer_unfinished_jobs)[3h:5m]) > 0\n"
        "unless sum(increase(flywheel_trainer_jobs_total[3h])) > 0",
        "Training jobs are unfinished, and none has ended for three hours.", "5m",
    ),
    Alert(
        "VersionSkew", "ticket",
        "count by (channel) (sum by (channel, version) (flywheel_deployer_running_agents) > 0) > 2",
        "Agents of channel {{ $labels.channel }} run {{ $value }} versions at once.", "1h",
    ),
    Alert(
        "ModelRefused", "page", risen('flywheel_deployer_acks_total{status="failed"}', "status", "15m"),
        "Agents could not load the model that they were given; they keep their old one.",
    ),
)  # fmt: skip

GATEWAY = (
    Alert(
        "GatewayErrors", "page", AVAILABILITY.burning(*FAST),
        "The gateway fails requests: the month's budget would be gone in two days.",
    ),
    Alert(
        "GatewaySlow", "ticket", LATENCY.burning(*SLOW),
        "The gateway answers slowly: the month's budget would be gone in five days.",
    ),
)  # fmt: skip

PROCESSES = (
    Alert(
        "ServiceNotReady", "page", f"flywheel_ready{{{_OURS}}} == 0",
        "{{ $labels.service }} ({{ $labels.pod }}) runs, and cannot use what it leans on.", "10m",
    ),
    Alert(
        "ServiceMissing", "page",
        f"max by (deployment) (kube_deployment_spec_replicas{{{_OURS}}})\n"
        f"> max by (deployment) (kube_deployment_status_replicas_available{{{_OURS}}})",
        "{{ $labels.deployment }} has fewer pods than it should.", "15m",
    ),
    Alert(
        "PodPending", "ticket", f'sum by (pod) (kube_pod_status_phase{{{_OURS},phase="Pending"}}) > 0',
        "{{ $labels.pod }} finds no node.", "30m",
    ),
    Alert(
        "RestartLoop", "page",
        f"sum by (pod, container) (increase(kube_pod_container_status_restarts_total{{{_OURS}}}[30m])) > 3",
        "{{ $labels.pod }} keeps restarting.",
    ),
)  # fmt: skip

PLATFORM = (
    Alert(
        "DiskFilling", "page",
        f"min by (persistentvolumeclaim) (kubelet_volume_stats_available_bytes{{{_OURS}}}"
        f" / kubelet_volume_stats_capacity_bytes{{{_OURS}}}) < 0.15",
        "{{ $labels.persistentvolumeclaim }} has {{ $value | humanizePercentage }} left.", "10m",
    ),
    Alert(
        "CertificateExpiring", "ticket",
        "min by (cluster, type) (strimzi_certificate_expiration_timestamp_ms) / 1000 - time() < 14 * 86400",
        "A certificate of Kafka ({{ $labels.type }}) ends within two weeks and was not renewed.", "1h",
    ),
    Alert(
        "KafkaUnderReplicated", "page", "sum(kafka_server_replicamanager_underreplicatedpartitions) > 0",
        "{{ $value }} partitions have fewer replicas in step than they should.", "10m",
    ),
    Alert(
        "KafkaNoController", "page", "sum(kafka_controller_kafkacontroller_activecontrollercount) != 1",
        "Kafka has {{ $value }} active controllers.", "5m",
    ),
    Alert(
        "PostgresReplicaBehind", "ticket", f"max by (pod) (cnpg_pg_replication_lag{{{_OURS}}}) > 60",
        "{{ $labels.pod }} is {{ $value | humanizeDuration }} behind the primary.", "10m",
    ),
    Alert(
        "PostgresConnectionsScarce", "ticket",
        f"max(sum by (pod) (cnpg_backends_total{{{_OURS}}}))\n"
        f'> 0.85 * max(cnpg_pg_settings_setting{{{_OURS},name="max_connections"}})',
        "Postgres has {{ $value }} connections, close to its limit.", "10m",
    ),
    Alert(
        "BackupOld", "page",
        f"time() - max(barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{{{_OURS}}}) > 36 * 3600",
        "The last backup of Postgres is {{ $value | humanizeDuration }} old.", "10m",
    ),
    Alert(
        "WalArchivingFails", "page", f"max(increase(cnpg_pg_stat_archiver_failed_count{{{_OURS}}}[15m])) > 0",
        "Postgres cannot archive its log: the backup falls behind, and the disk fills.", "15m",
    ),
)  # fmt: skip

GROUPS: dict[str, tuple[Alert, ...]] = {
    "flywheel-events": EVENTS,
    "flywheel-loop": LOOP,
    "flywheel-gateway": GATEWAY,
    "flywheel-processes": PROCESSES,
    "flywheel-platform": PLATFORM,
}
ALERTS: tuple[Alert, ...] = tuple(alert for group in GROUPS.values() for alert in group)


def rule_groups() -> dict[str, Any]:
    """Return all rules as Prometheus reads them from a file."""
    return {
        "groups": [{"name": name, "rules": [alert.rule() for alert in alerts]} for name, alerts in GROUPS.items()],
    }
