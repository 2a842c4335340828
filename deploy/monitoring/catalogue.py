"""Which series there are: ours from the code's own catalogue, others' by the names that we rely on.

An expression may only ask for what is here; a test holds every panel and alert against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from flywheel import metrics

#: Series of the platform's exporters that alerts and dashboards ask for, by who exports them.
OTHERS: dict[str, tuple[str, ...]] = {
    "Prometheus": ("ALERTS",),
    "kube-state-metrics": (
        "kube_deployment_spec_replicas",
        "kube_deployment_status_observed_generation",
        "kube_deployment_status_replicas_available",
        "kube_pod_container_status_restarts_total",
        "kube_pod_status_phase",
    ),
    "kubelet": (
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "kubelet_volume_stats_available_bytes",
        "kubelet_volume_stats_capacity_bytes",
    ),
    "Kafka (deploy/k8s/platform/kafka-metrics.yaml)": (
        "kafka_controller_kafkacontroller_activecontrollercount",
        "kafka_log_log_size",
        "kafka_server_brokertopicmetrics_bytesin_total",
        "kafka_server_brokertopicmetrics_messagesin_total",
        "kafka_server_replicamanager_underreplicatedpartitions",
    ),
    "Strimzi's Kafka exporter and operator": (
        "kafka_consumergroup_lag",
        "strimzi_certificate_expiration_timestamp_ms",
    ),
    "CloudNativePG": (
        "barman_cloud_cloudnative_pg_io_last_available_backup_timestamp",  # by its Barman Cloud plugin
        "cnpg_backends_total",
        "cnpg_pg_database_size_bytes",
        "cnpg_pg_replication_lag",
        "cnpg_pg_settings_setting",
        "cnpg_pg_stat_archiver_failed_count",
    ),
}

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
#: What stands in an expression and is no series: label values, labels in ``by (…)``, durations.
_NOT_SERIES = re.compile(
    r'"[^"]*"|\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^\]]*\]'
)
_WORDS = frozenset(
    {
        "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool",
        "sum", "min", "max", "avg", "count", "topk", "rate", "increase", "delta", "changes", "histogram_quantile",
        "min_over_time", "max_over_time", "clamp_min", "vector", "time", "s", "m", "h", "d",
    }
)  # fmt: skip


def own_series() -> set[str]:
    """Return every series of the code's catalogue, a histogram's three among them."""
    series: set[str] = set()
    for metric in vars(metrics).values():
        if isinstance(metric, type) or not hasattr(metric, "describe"):
            continue
        for family in metric.describe():
            if family.type == "histogram":
                series |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
            else:
                series.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return series


def known_series() -> set[str]:
    """Return every series that an expression may ask for."""
    return own_series().union(*OTHERS.values())


def asked_for(expression: str) -> Iterator[str]:
    """Yield the series that a PromQL expression asks for."""
    for name in _NAME.findall(_NOT_SERIES.sub(" ", expression)):
        if name.lower() not in _WORDS:
            yield name
