"""What becomes of an overlay that was taken: pods that are ready, where they should be, with all that they refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import documents
from tests.cluster.nodes import GPU_NODE, ZONES
from tests.cluster.refusing import stranger
from tests.cluster.world import World, eventually, is_ready, none_left
from tests.manifests.resources import Resource, of_kind

#: Fields that name a secret or a ConfigMap, and one of its keys.
_KEYS = {
    "secretKeyRef": "Secret", "accessKeyId": "Secret", "secretAccessKey": "Secret", "secretTargetRef": "Secret",
    "configMapKeyRef": "ConfigMap", "configMapTargetRef": "ConfigMap",
}  # fmt: skip
#: Fields that name something whole, and which field of them is its name.
_WHOLE = {
    "configMapRef": ("ConfigMap", "name"), "configMap": ("ConfigMap", "name"), "secretRef": ("Secret", "name"),
    "secret": ("Secret", "secretName"), "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}  # fmt: skip
#: Kinds whose fields operators follow.
_FOLLOWED = ("kafkas", "objectstores", "triggerauthentications", "pods")


def workloads_are_ready(world: World) -> str:
    """Every Deployment and StatefulSet is rolled out, every job completes, no pod waits."""
    done = world.rolled_out()
    world.kubectl("wait", "--for=condition=complete", "--timeout=60s", "job", "--all")
    none_left(lambda: unready(world), "not ready")
    return f"{done}, {len(world.pods())} pods ready"


def unready(world: World) -> list[str]:
    """Return the pods that are neither ready nor have done their work."""
    return [p["metadata"]["name"] for p in world.pods() if not is_ready(p) and p["status"]["phase"] != "Succeeded"]


def references_exist(world: World) -> str:
    """What pods and operators' resources refer to is there, with its keys: no kubelet would start a pod otherwise."""
    there = {
        kind: {r["metadata"]["name"]: r.get("data", {}) for r in world.kubectl.items(kind)}
        for kind in ("Secret", "ConfigMap", "PersistentVolumeClaim")
    }
    unbound = [c["metadata"]["name"] for c in world.kubectl.items("pvc") if c["status"].get("phase") != "Bound"]
    assert not unbound, f"volumes without a place: {', '.join(unbound)}"
    seen: set[tuple[str, str, str]] = set()
    for kind in _FOLLOWED:
        for resource in world.kubectl.items(kind):
            for of, name, key in references(resource["spec"]):
                who = resource["metadata"]["name"]
                assert name in there[of], f"{who} refers to the {of} {name}, which is not there"
                assert not key or key in there[of][name], (
                    f"{who} refers to {key} of the {of} {name}, which has no such key"
                )
                seen.add((of, name, key))
    counted = Counter(of for of, _, _ in seen)
    assert len(counted) == len(there), f"only {dict(counted)} found"
    return ", ".join(f"{number} of {kind}s" for kind, number in counted.items())


def references(value: Any) -> Iterator[tuple[str, str, str]]:
    """Yield what a resource refers to, however deep: kind, name, and the key where one is named."""
    if isinstance(value, list):
        for each in value:
            yield from references(each)
    elif isinstance(value, dict):
        for field, inner in value.items():
            for each in inner if isinstance(inner, list) else [inner]:
                if isinstance(each, dict) and field in _KEYS and {"name", "key"} <= each.keys():
                    yield _KEYS[field], each["name"], each["key"]
                elif isinstance(each, dict) and field in _WHOLE and _WHOLE[field][1] in each:
                    yield _WHOLE[field][0], each[_WHOLE[field][1]], ""
            yield from references(inner)


def services_have_endpoints(world: World) -> str:
    """Each Service finds ready pods."""
    names = [service["metadata"]["name"] for service in world.kubectl.items("services")]
    ready: Counter[str] = Counter()

    def without() -> list[str]:
        ready.clear()
        for part in world.kubectl.items("endpointslices"):
            addresses = [e for e in part.get("endpoints") or () if e["conditions"].get("ready")]
            ready[part["metadata"]["labels"]["kubernetes.io/service-name"]] += len(addresses)
        return [name for name in names if not ready[name]]

    none_left(without, "without a ready pod")
    return ", ".join(f"{name} {number}" for name, number in sorted(ready.items()))


def pods_have_no_token(world: World) -> str:
    """No pod is given a token for the API server, nor one that names no account; elsewhere, admission gives it one."""
    holders = [pod["metadata"]["name"] for pod in world.pods() if _has_token(pod)]
    assert not holders, f"with a token: {', '.join(holders)}"
    create = ("create", "--dry-run=server", "-f", "-")
    eventually(lambda: world.kubectl("get", "serviceaccount", "default", "-n", "monitoring"), "an account elsewhere")
    nameless = world.kubectl.json(*create, given=documents([stranger()]))
    assert not _has_token(nameless), "a pod that names no account gets a token"
    elsewhere = stranger()
    elsewhere["metadata"]["namespace"] = "monitoring"
    control = world.kubectl.json(*create, "-n", "monitoring", given=documents([elsewhere]))
    assert _has_token(control), "not even elsewhere does admission give a token"
    return f"none of {len(world.pods())} pods"


def _has_token(pod: Resource) -> bool:
    sources = [source for v in pod["spec"].get("volumes", ()) for source in v.get("projected", {}).get("sources", ())]
    return any("serviceAccountToken" in source for source in sources)


def autoscalers_lift_to_their_least(world: World, folder: Path) -> str:
    """The HPA of the gateway, and those that KEDA makes of its ScaledObjects, bring each to its least replicas."""
    for scaled in of_kind(world.built(folder), "ScaledObject"):
        world.kubectl.apply([_hpa_of_keda(scaled)])
    least: dict[str, int] = {}
    limits: list[str] = []
    for hpa in world.kubectl.items("hpa"):
        name = hpa["spec"]["scaleTargetRef"]["name"]
        least[name] = hpa["spec"]["minReplicas"]
        limits.append(f"{name} {least[name]} to {hpa['spec']['maxReplicas']}")
        eventually(lambda n=name: len([p for p in world.of(n) if is_ready(p)]) >= least[n], f"{least[name]} of {name}")
    assert "gateway" in least, "no HorizontalPodAutoscaler of the gateway"
    return ", ".join(sorted(limits))


def _hpa_of_keda(scaled: Resource) -> dict[str, Any]:
    """Return the HorizontalPodAutoscaler that KEDA makes; from zero to one is KEDA's own step."""
    spec, name = scaled["spec"], scaled["metadata"]["name"]
    lag = {"metric": {"name": "s0-kafka"}, "target": {"type": "AverageValue", "averageValue": "1"}}
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": f"keda-hpa-{name}", "namespace": "flywheel"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec["scaleTargetRef"]["name"]},
            "minReplicas": max(1, spec["minReplicaCount"]), "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {}),
            "metrics": [{"type": "External", "external": lag}],
        },
    }  # fmt: skip


def replicas_are_in_both_zones(world: World, services: tuple[str, ...]) -> str:
    """The replicas of each service stand in every zone."""
    zone = {
        node["metadata"]["name"]: node["metadata"]["labels"]["topology.kubernetes.io/zone"]
        for node in world.kubectl.items("nodes")
    }
    seen = {service: Counter(zone[pod["spec"]["nodeName"]] for pod in world.of(service)) for service in services}
    for service, zones in seen.items():
        assert set(zones) == set(ZONES), f"{service} is in {dict(zones)} alone"
    return "; ".join(
        f"{service} {' '.join(f'{z}:{n}' for z, n in sorted(zones.items()))}" for service, zones in seen.items()
    )


def only_the_trainer_is_on_the_gpu_node(world: World) -> str:
    """Nothing of ours stands on the GPU's node but what needs it."""
    there = [
        pod["metadata"]["labels"].get("app.kubernetes.io/name")
        for pod in world.pods()
        if pod["spec"].get("nodeName") == GPU_NODE
    ]
    assert set(there) <= {"trainer"}, f"on {GPU_NODE}: {there}"
    return f"{GPU_NODE}: {', '.join(there) or 'nothing'}"
