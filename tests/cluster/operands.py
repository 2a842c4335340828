"""The pods that Strimzi and CloudNativePG make of our resources, as far as admission, quota and scheduler look at them.

Of Strimzi's, hardening is taken from the resource alone, as its default provider does: what the resource does not say,
the pod does not have. CloudNativePG hardens its pods by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.cluster.kubectl import NAMESPACE
from tests.manifests.resources import Resource, of_kind

#: CloudNativePG's own (its pkg/specs/containers.go and pod security context).
_POSTGRES_CONTAINER = {
    "allowPrivilegeEscalation": False, "privileged": False, "runAsNonRoot": True, "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
_POSTGRES_POD = {
    "runAsNonRoot": True, "runAsUser": 26, "runAsGroup": 26, "fsGroup": 26,
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip


def operands(resources: Iterable[Resource]) -> Iterator[dict[str, Any]]:
    """Yield the pods and claims that the operators would make of built manifests."""
    built = list(resources)
    (kafka,) = of_kind(built, "Kafka")
    for pool in of_kind(built, "KafkaNodePool"):
        for number in range(pool["spec"]["replicas"]):
            yield from _broker(kafka, pool, number)
    yield _entity_operator(kafka)
    if exporter := kafka["spec"].get("kafkaExporter"):
        yield _exporter(kafka, exporter)
    for cluster in of_kind(built, "Cluster"):
        sidecar = next((store["spec"] for store in of_kind(built, "ObjectStore")), None)
        for number in range(1, cluster["spec"]["instances"] + 1):
            yield from _instance(cluster, sidecar, number)


def _broker(kafka: Resource, pool: Resource, number: int) -> Iterator[dict[str, Any]]:
    cluster, spec = kafka["metadata"]["name"], pool["spec"]
    name = f"{cluster}-{pool['metadata']['name']}-{number}"
    template = spec["template"]
    labels = {**_strimzi(cluster, "Kafka", f"{cluster}-kafka"), "strimzi.io/pool-name": pool["metadata"]["name"]}
    volumes: dict[str, Any] = {}
    for volume in spec["storage"]["volumes"]:
        claim = f"data-{volume['id']}-{name}"
        yield _claim(claim, labels, volume["size"])
        volumes[f"data-{volume['id']}"] = {"persistentVolumeClaim": {"claimName": claim}}
    container = {"name": "kafka", "resources": spec["resources"], **template.get("kafkaContainer", {})}
    # Reads the zone of its node; has the broker's own requests.
    init = {"name": "kafka-init", "resources": spec["resources"], **template.get("initContainer", {})}
    has_rack = "rack" in kafka["spec"]["kafka"]
    yield _pod(name, labels, [container], volumes, template.get("pod", {}), init=[init] if has_rack else [])


def _entity_operator(kafka: Resource) -> dict[str, Any]:
    cluster, spec = kafka["metadata"]["name"], kafka["spec"]["entityOperator"]
    template = spec.get("template", {})
    name = f"{cluster}-entity-operator"
    containers = []
    for part in ("topic", "user"):
        hardening = template.get(f"{part}OperatorContainer", {})
        containers.append({"name": f"{part}-operator", "resources": spec[f"{part}Operator"]["resources"], **hardening})
    return _pod(name, _strimzi(cluster, "Kafka", name), containers, {}, template.get("pod", {}))


def _exporter(kafka: Resource, spec: Mapping[str, Any]) -> dict[str, Any]:
    cluster, template = kafka["metadata"]["name"], spec.get("template", {})
    name = f"{cluster}-kafka-exporter"
    container = {"name": name, "resources": spec["resources"], **template.get("container", {})}
    return _pod(name, _strimzi(cluster, "KafkaExporter", name), [container], {}, template.get("pod", {}))


def _instance(cluster: Resource, store: Mapping[str, Any] | None, number: int) -> Iterator[dict[str, Any]]:
    spec, name = cluster["spec"], f"{cluster['metadata']['name']}-{number}"
    labels = {"cnpg.io/cluster": cluster["metadata"]["name"], "cnpg.io/podRole": "instance"}
    yield _claim(name, labels, spec["storage"]["size"])
    volumes: dict[str, Any] = {"pgdata": {"persistentVolumeClaim": {"claimName": name}}}
    if "walStorage" in spec:
        yield _claim(f"{name}-wal", labels, spec["walStorage"]["size"])
        volumes["pg-wal"] = {"persistentVolumeClaim": {"claimName": f"{name}-wal"}}
    hard = {"securityContext": _POSTGRES_CONTAINER}
    init = [{"name": "bootstrap-controller", "resources": spec["resources"], **hard}]
    if spec.get("plugins") and store is not None:
        resources = store["instanceSidecarConfiguration"]["resources"]
        init.append({"name": "plugin-barman-cloud", "resources": resources, "restartPolicy": "Always", **hard})
    container = {"name": "postgres", "resources": spec["resources"], **hard}
    yield _pod(name, labels, [container], volumes, {"securityContext": _POSTGRES_POD}, init=init)


def _strimzi(cluster: str, kind: str, name: str) -> dict[str, str]:
    return {"strimzi.io/cluster": cluster, "strimzi.io/kind": kind, "strimzi.io/name": name}


def _claim(name: str, labels: Mapping[str, str], size: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def _pod(
    name: str,
    labels: Mapping[str, str],
    containers: list[dict[str, Any]],
    volumes: Mapping[str, Any],
    template: Mapping[str, Any],
    *,
    init: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return a pod. Images are not pulled here, so any name does; which one the operator takes is its own affair."""
    image = {"image": "operand:0"}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels)},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [image | each for each in containers],
            "initContainers": [image | each for each in init],
            "volumes": [{"name": name} | source for name, source in volumes.items()],
            **{name: value for name, value in template.items() if name != "metadata"},
        },
    }  # fmt: skip
