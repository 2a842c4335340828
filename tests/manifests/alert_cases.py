"""When each alert fires and when it does not: series as they would be scraped, and the moment that is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """Series (values a minute, in promtool's notation) and how many alerts of the name fire at ``at``."""

    alert: str
    says: str
    series: Mapping[str, str]
    at: str
    firing: int


_READY = 'flywheel_ready{namespace="flywheel",pod="p",service="recorder"}'
_LAG = 'flywheel_lag_records{topic="flywheel.events",partition="0"}'
_CONSUMED = 'flywheel_consumed_total{topic="flywheel.events"}'
_DEAD = 'flywheel_dead_letters_total{topic="flywheel.events",reason="schema"}'
_BRAKE = 'flywheel_brake{topic="flywheel.events"}'
_WAITING = 'flywheel_archiver_waiting_trajectories{channel="default"}'
_BATCHES = 'flywheel_archiver_batches_total{channel="default"}'
_UNFINISHED = "flywheel_trainer_unfinished_jobs"
_UNDER = "kafka_server_replicamanager_underreplicatedpartitions"
_CONTROLLERS = "kafka_controller_kafkacontroller_activecontrollercount"
_JOBS = 'flywheel_trainer_jobs_total{status="completed"}'
_FAILED = 'flywheel_trainer_jobs_total{status="failed"}'
_ACKS = 'flywheel_deployer_acks_total{status="failed"}'
_SPEC = 'kube_deployment_spec_replicas{namespace="flywheel",deployment="recorder"}'
_THERE = 'kube_deployment_status_replicas_available{namespace="flywheel",deployment="recorder"}'
_RESTARTS = 'kube_pod_container_status_restarts_total{namespace="flywheel",pod="p",container="service"}'
_PENDING = 'kube_pod_status_phase{namespace="flywheel",pod="p",phase="Pending"}'
_FREE = 'kubelet_volume_stats_available_bytes{namespace="flywheel",persistentvolumeclaim="data"}'
_ROOM = 'kubelet_volume_stats_capacity_bytes{namespace="flywheel",persistentvolumeclaim="data"}'
_CERTIFICATE = 'strimzi_certificate_expiration_timestamp_ms{cluster="flywheel",type="cluster-ca"}'
_BACKENDS = 'cnpg_backends_total{namespace="flywheel",pod="p",state="idle"}'
_ALLOWED = 'cnpg_pg_settings_setting{namespace="flywheel",name="max_connections"}'
_BACKUP = 'barman_cloud_cloudnative_pg_io_last_available_backup_timestamp{namespace="flywheel",pod="p"}'
_WAL = 'cnpg_pg_stat_archiver_failed_count{namespace="flywheel",pod="p"}'
_REPLICA = 'cnpg_pg_replication_lag{namespace="flywheel",pod="p"}'


def versions(*names: str) -> dict[str, str]:
    return {f'flywheel_deployer_running_agents{{channel="default",version="{name}"}}': "3x120" for name in names}


def durable(good: str, every: str) -> dict[str, str]:
    bucket = 'flywheel_recorder_durable_seconds_bucket{le="10.0"}'
    return {bucket: good, "flywheel_recorder_durable_seconds_count": every}


def answered(good: str, bad: str) -> dict[str, str]:
    name = 'flywheel_gateway_requests_total{method="GET",route="/api/v1/batches",status="%s"}'
    return {name % 200: good, name % 503: bad}


def took(quick: str, every: str, route: str = "/api/v1/batches") -> dict[str, str]:
    name = "flywheel_gateway_request_seconds"
    return {f'{name}_bucket{{route="{route}",le="1.0"}}': quick, f'{name}_count{{route="{route}"}}': every}


CASES: tuple[Case, ...] = (
    Case("EventsLate", "fires when a fifth is late", durable("0+80x120", "0+100x120"), "90m", 1),
    Case("EventsLate", "is quiet when one in a thousand is late", durable("0+999x120", "0+1000x120"), "90m", 0),
    Case("EventsLate", "is quiet once it is over", durable("0+80x60 4900+100x60", "0+100x120"), "90m", 0),
    Case("EventsLateSlowly", "fires when a tenth is late for hours", durable("0+90x480", "0+100x480"), "7h", 1),
    Case("EventsLateSlowly", "is quiet within the budget", durable("0+99x480", "0+100x480"), "7h", 0),
    Case("LagWithoutProgress", "fires when nothing moves", {_LAG: "50x60", _CONSUMED: "900x60"}, "40m", 1),
    Case("LagWithoutProgress", "fires before anything ever moved", {_LAG: "50x60"}, "40m", 1),
    Case("LagWithoutProgress", "is quiet while it moves", {_LAG: "50x60", _CONSUMED: "0+9x60"}, "40m", 0),
    Case("LagWithoutProgress", "is quiet when all is handled", {_LAG: "0x60", _CONSUMED: "900x60"}, "40m", 0),
    Case("ConsumerPaused", "fires at once", {_BRAKE: "0x10 1x30"}, "11m", 1),
    Case("ConsumerPaused", "is quiet once it is released", {_BRAKE: "1x10 0x30"}, "20m", 0),
    Case("DeadLetters", "fires on the first ever", {_DEAD: "_x29 1x30"}, "32m", 1),
    Case("DeadLetters", "fires on another one", {_DEAD: "3x30 4x30"}, "35m", 1),
    Case("DeadLetters", "is quiet about old ones", {_DEAD: "3x60"}, "45m", 0),
    Case("OutboxOld", "fires when a message stays", {"flywheel_outbox_age_seconds": "0+60x30"}, "15m", 1),
    Case("OutboxOld", "is quiet while messages leave", {"flywheel_outbox_age_seconds": "2x30"}, "15m", 0),
    Case(
        "ArchiveGap", "fires when the archiver misses a tenth",
        {'flywheel_recorder_closed_total{status="completed"}': "0+10x600", "flywheel_archiver_queued_total": "0+9x600"},
        "8h", 1,
    ),
    Case(
        "ArchiveGap", "is quiet when all came, some to be skipped",
        {
            'flywheel_recorder_closed_total{status="completed"}': "0+10x600",
            "flywheel_archiver_queued_total": "0+9x600",
            'flywheel_archiver_skipped_total{reason="held_out"}': "0+1x600",
        },
        "8h", 0,
    ),
    Case("NothingReady", "fires after a day", {_WAITING: "40x1600", _BATCHES: "7x1600"}, "25h", 1),
    Case("NothingReady", "fires where no batch ever was", {_WAITING: "40x1600"}, "25h", 1),
    Case("NothingReady", "is quiet when a batch was ready", {_WAITING: "40x1600", _BATCHES: "7x800 8x800"}, "25h", 0),
    Case("NothingReady", "is quiet on the first day", {_WAITING: "_x1000 40x600"}, "25h", 0),
    Case("NothingReady", "is quiet when nothing waits", {_WAITING: "0x1600", _BATCHES: "7x1600"}, "25h", 0),
    Case("TrainingFailed", "fires on the first failure ever", {_FAILED: "_x29 1x30"}, "35m", 1),
    Case("TrainingFailed", "is quiet about completed jobs", {_JOBS: "0+1x60", _FAILED: "2x60"}, "50m", 0),
    Case("TrainingStuck", "fires after hours", {_UNFINISHED: "1x300", _JOBS: "4x300"}, "4h", 1),
    Case("TrainingStuck", "is quiet while jobs end", {_UNFINISHED: "1x300", _JOBS: "0+1x300"}, "4h", 0),
    Case("TrainingStuck", "is quiet with nothing to do", {_UNFINISHED: "0x300", _JOBS: "4x300"}, "4h", 0),
    Case("VersionSkew", "fires on three at once", versions("1.1.0", "1.2.0", "1.3.0"), "90m", 1),
    Case("VersionSkew", "is quiet during a change", versions("1.2.0", "1.3.0"), "90m", 0),
    Case("ModelRefused", "fires on the first refusal ever", {_ACKS: "_x29 1x30"}, "35m", 1),
    Case("ModelRefused", "is quiet about old refusals", {_ACKS: "2x60"}, "50m", 0),
    Case("GatewayErrors", "fires when a tenth fails", answered("0+90x120", "0+10x120"), "90m", 1),
    Case("GatewayErrors", "is quiet within the budget", answered("0+999x120", "0+1x120"), "90m", 0),
    Case("GatewaySlow", "fires when a tenth is slow for hours", took("0+90x480", "0+100x480"), "7h", 1),
    Case("GatewaySlow", "is quiet within the budget", took("0+99x480", "0+100x480"), "7h", 0),
    Case("GatewaySlow", "leaves exports alone", took("0+1x480", "0+100x480", "/api/v1/export"), "7h", 0),
    Case("ServiceNotReady", "fires after ten minutes", {_READY: "0x60"}, "15m", 1),
    Case("ServiceNotReady", "is quiet about a moment", {_READY: "1x10 0x3 1x30"}, "15m", 0),
    Case("ServiceMissing", "fires when a pod is missing", {_SPEC: "2x60", _THERE: "1x60"}, "20m", 1),
    Case("ServiceMissing", "is quiet when all are there", {_SPEC: "2x60", _THERE: "2x60"}, "20m", 0),
    Case("ServiceMissing", "is quiet about what is scaled to zero", {_SPEC: "0x60", _THERE: "0x60"}, "20m", 0),
    Case("PodPending", "fires after half an hour", {_PENDING: "1x60"}, "40m", 1),
    Case("PodPending", "is quiet about a start", {_PENDING: "1x5 0x60"}, "40m", 0),
    Case("RestartLoop", "fires on the fifth", {_RESTARTS: "0x5 0+1x30"}, "20m", 1),
    Case("RestartLoop", "is quiet about one", {_RESTARTS: "0x10 1x30"}, "20m", 0),
    Case("DiskFilling", "fires below its share", {_FREE: "10x60", _ROOM: "100x60"}, "20m", 1),
    Case("DiskFilling", "is quiet with room", {_FREE: "30x60", _ROOM: "100x60"}, "20m", 0),
    Case("CertificateExpiring", "fires two weeks before", {_CERTIFICATE: "864000000x120"}, "90m", 1),
    Case("CertificateExpiring", "is quiet before that", {_CERTIFICATE: "2592000000x120"}, "90m", 0),
    Case("KafkaUnderReplicated", "fires", {_UNDER: "2x60"}, "20m", 1),
    Case("KafkaUnderReplicated", "is quiet", {_UNDER: "0x60"}, "20m", 0),
    Case("KafkaNoController", "fires", {_CONTROLLERS: "0x60"}, "20m", 1),
    Case("KafkaNoController", "is quiet", {_CONTROLLERS: "1x60"}, "20m", 0),
    Case("PostgresReplicaBehind", "fires", {_REPLICA: "300x60"}, "20m", 1),
    Case("PostgresReplicaBehind", "is quiet", {_REPLICA: "1x60"}, "20m", 0),
    Case("PostgresConnectionsScarce", "fires", {_BACKENDS: "190x60", _ALLOWED: "200x60"}, "20m", 1),
    Case("PostgresConnectionsScarce", "is quiet", {_BACKENDS: "100x60", _ALLOWED: "200x60"}, "20m", 0),
    Case("BackupOld", "fires after two days", {_BACKUP: "0x3000"}, "48h", 1),
    Case("BackupOld", "is quiet after one", {_BACKUP: "0x3000"}, "24h", 0),
    Case("WalArchivingFails", "fires while it fails", {_WAL: "0+1x60"}, "45m", 1),
    Case("WalArchivingFails", "is quiet about old failures", {_WAL: "3x60"}, "45m", 0),
)  # fmt: skip
