"""What the API server refuses: wrong resources, unsafe pods. It shows that what it takes was looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import documents
from tests.cluster.world import World
from tests.manifests.resources import one

Spoil = Callable[[dict[str, Any]], None]


def _set(*path: str | int, value: Any) -> Spoil:
    def spoil(resource: dict[str, Any]) -> None:
        inside: Any = resource
        for step in path[:-1]:
            inside = inside[step]
        if value is None:
            del inside[path[-1]]
        else:
            inside[path[-1]] = value

    return spoil


#: A resource of ours, what is spoilt in it, and a word of the refusal.
SPOILT: tuple[tuple[str, str, Spoil, str], ...] = (
    ("KafkaTopic", "flywheel.events", _set("spec", "partitions", value="x"), "spec.partitions"),
    ("KafkaTopic", "flywheel.events", _set("spec", "partition", value=12), "spec.partition"),
    ("KafkaUser", "flywheel-agents", _set("spec", "authentication", "type", value="password"), "authentication.type"),
    ("Kafka", "flywheel", _set("spec", "kafka", "listeners", 0, "port", value="plain"), "port"),
    ("KafkaNodePool", "brokers", _set("spec", "roles", value=["leader"]), "spec.roles"),
    ("Cluster", "flywheel-postgres", _set("spec", "instances", value=0), "spec.instances"),
    ("Cluster", "flywheel-postgres", _set("spec", "postgresql", "synchronous", "method", value="all"), "method"),
    ("ScheduledBackup", "nightly", _set("spec", "schedule", value=None), "spec.schedule"),
    ("ObjectStore", "flywheel-backups", _set("spec", "configuration", value=None), "spec.configuration"),
    ("ScaledObject", "recorder", _set("spec", "maxReplicaCount", value="many"), "spec.maxReplicaCount"),
    ("TriggerAuthentication", "kafka", _set("spec", "secretTargetRefs", value=[]), "spec.secretTargetRefs"),
    ("PodMonitor", "services", _set("spec", "selector", value=None), "spec.selector"),
    ("PrometheusRule", "flywheel", _set("spec", "groups", 0, "rules", 0, "for", value="soon"), "for"),
    ("Deployment", "recorder", _set("spec", "replica", value=3), "replica"),
    ("Deployment", "gateway", _set("spec", "selector", "matchLabels", value={"a": "b"}), "template.metadata.labels"),
    ("HorizontalPodAutoscaler", "gateway", _set("spec", "minReplicas", value=9), "spec.maxReplicas"),
    ("PodDisruptionBudget", "recorder", _set("spec", "minAvailable", value=1), "minAvailable"),
    ("NetworkPolicy", "to-gateway", _set("spec", "ingress", 0, "ports", 0, "port", value=99999), "port"),
    ("ResourceQuota", "flywheel", _set("spec", "hard", "pods", value="-1"), "spec.hard"),
    ("Service", "recorder", _set("spec", "ports", 0, "port", value=0), "spec.ports[0].port"),
)  # fmt: skip


def what_is_wrong_is_refused(world: World, folder: Path) -> str:
    """Each of :data:`SPOILT` is refused, and the refusal names the field."""
    built = world.built(folder)
    for kind, name, spoil, field in SPOILT:
        resource = copy.deepcopy(dict(one(built, kind, name)))
        resource["metadata"]["name"] = f"{name}-spoilt"
        apply = ("apply", "--server-side", "--dry-run=server", "-f", "-")
        world.kubectl(*apply, given=documents([resource]))  # whole, it is taken
        spoil(resource)
        said = world.kubectl.refusal(*apply, given=documents([resource]), what=f"{kind} with a wrong {field}")
        assert field in said, f"{kind} refused for another reason than {field}: {said}"
    return f"{len(SPOILT)} of {len(SPOILT)} spoilt resources, each by the name of its field"


def stranger(**changes: Any) -> dict[str, Any]:
    """Return a pod that the namespace takes, with some of its fields changed."""
    container = {
        "name": "c", "image": "none:0",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    own = {name: changes.pop(name) for name in ("securityContext", "resources") if name in changes}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container | own], **changes,
        },
    }  # fmt: skip


#: What a pod must not be here, and a word of the refusal.
UNSAFE: Mapping[str, tuple[dict[str, Any], str]] = {
    "root": (
        {"securityContext": {**stranger()["spec"]["containers"][0]["securityContext"], "runAsUser": 0}},
        "runAsUser=0",
    ),
    "privileged": ({"securityContext": {"privileged": True}}, "privileged"),
    "capabilities kept": ({"securityContext": {"allowPrivilegeEscalation": False}}, "capabilities.drop"),
    "the node's network": ({"hostNetwork": True}, "host namespaces"),
    "the node's files": ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
}


def unsafe_pods_are_refused(world: World) -> str:
    """Pod Security admission refuses each of :data:`UNSAFE`, and takes the same pod without it."""
    create = ("create", "--dry-run=server", "-f", "-")
    world.kubectl(*create, given=documents([stranger()]))
    for what, (changes, word) in UNSAFE.items():
        said = world.kubectl.refusal(*create, given=documents([stranger(**changes)]), what=what)
        assert "PodSecurity" in said and word in said, f"{what}: {said}"
    return f"refused: {', '.join(UNSAFE)}"
