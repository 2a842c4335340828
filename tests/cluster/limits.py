"""What the namespace may take: limits for pods that name none, and a quota with room for everything at its most."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.kubectl import documents
from tests.cluster.refusing import stranger
from tests.cluster.world import World, eventually
from tests.manifests.resources import of_kind


def a_pod_that_says_nothing_gets_limits(world: World) -> str:
    """The LimitRange gives a container that asks for nothing a little, and an end to it."""
    made = world.kubectl.json("create", "--dry-run=server", "-f", "-", given=documents([stranger()]))
    resources = made["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {"memory": "512Mi"}, "requests": {"cpu": "50m", "memory": "128Mi"}}, resources
    return str(resources)


def more_than_the_quota_is_refused(world: World, gpu: bool) -> str:
    """A pod that takes more than the quota leaves is not made."""
    wanted = {"memory": "500Gi"} if not gpu else {"nvidia.com/gpu": "1", "memory": "1Gi"}
    pod = stranger(resources={"requests": {"cpu": "1", **wanted}, "limits": wanted})
    said = world.kubectl.refusal("create", "--dry-run=server", "-f", "-", given=documents([pod]))
    assert "exceeded quota: flywheel" in said, said
    return said.split("exceeded quota: ", 1)[1]


def everything_at_its_most_fits(world: World, folder: Path) -> str:
    """With every autoscaled service at its most replicas, all pods get a node and the quota has room."""
    scaled = {
        r["spec"]["scaleTargetRef"]["name"]: r["spec"]
        for r in of_kind(world.built(folder), "ScaledObject", "HorizontalPodAutoscaler")
    }
    most = {name: spec.get("maxReplicaCount") or spec["maxReplicas"] for name, spec in scaled.items()}
    least = {name: spec.get("minReplicaCount") or spec["minReplicas"] for name, spec in scaled.items()}
    for name, number in most.items():
        world.scale(name, number)
    world.rolled_out()
    waiting = [pod["metadata"]["name"] for pod in world.pods() if pod["status"]["phase"] == "Pending"]
    assert not waiting, f"without a node: {', '.join(waiting)}"
    status = world.kubectl.one("resourcequota", "flywheel")["status"]
    for name, number in least.items():
        world.scale(name, number)
    eventually(lambda: all(len(world.of(name)) <= number for name, number in least.items()), "scaled back")
    used = [f"{name} {status['used'][name]} of {hard}" for name, hard in status["hard"].items()]
    return ", ".join([*(f"{name} {number}" for name, number in most.items()), *used])
