"""The trainer of the gpu overlay: from zero, on the node with the GPU, waiting rather than taking one from others."""

from __future__ import annotations

from typing import Any

from tests.cluster.kubectl import documents
from tests.cluster.nodes import GPU, GPU_NODE
from tests.cluster.world import World, eventually, is_ready

#: Somebody else's namespace and its pod with a GPU, of no priority.
OTHERS = "others"
_SERVING = "serving"


def nothing_waits_nobody_trains(world: World) -> str:
    """Scaled to zero, as KEDA does when no batch waits, no trainer is there and its volume stays."""
    world.scale("trainer", 0)
    eventually(lambda: not world.kubectl.items("pods", "-l", "app.kubernetes.io/name=trainer"), "no trainer")
    volume = world.kubectl.one("pvc", "trainer-checkpoints")
    assert volume["status"]["phase"] == "Bound", f"its volume is {volume['status']['phase']}"
    return f"no pod; volume {volume['spec']['resources']['requests']['storage']} stays"


def the_trainer_lands_on_the_gpu(world: World) -> str:
    """Scaled to one, as KEDA does when a batch waits, it gets the GPU of that node, its priority and its volume."""
    world.scale("trainer", 1)
    pod = _trainer(world)
    spec = pod["spec"]
    assert spec["nodeName"] == GPU_NODE, f"on {spec['nodeName']}"
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits[GPU] == "1", f"limits {limits}"
    preempts = f"priority {spec['priority']}, preempts {spec['preemptionPolicy']}"
    assert preempts == "priority 1000, preempts Never", preempts
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["trainer-checkpoints"], f"volumes {claims}"
    return f"on {GPU_NODE}, {preempts}, volume {claims[0]}"


def it_waits_when_others_have_the_gpu(world: World) -> str:
    """With the only GPU taken by a pod of lower priority it stays pending and takes nothing, until the GPU is free."""
    world.scale("trainer", 0)
    eventually(lambda: not world.kubectl.items("pods", "-l", "app.kubernetes.io/name=trainer"), "no trainer")
    world.kubectl.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHERS}}])
    eventually(lambda: world.kubectl("get", "serviceaccount", "default", "-n", OTHERS), "an account of theirs")
    world.kubectl("create", "-n", OTHERS, "-f", "-", given=documents([_with_gpu(_SERVING)]))
    eventually(lambda: is_ready(world.kubectl.one("pod", _SERVING, "-n", OTHERS)), "their pod has the GPU")
    world.scale("trainer", 1)
    said = eventually(lambda: _unschedulable(world), "the scheduler says why")
    assert f"Insufficient {GPU}" in said, said
    pending = world.of("trainer")[0]
    assert pending["status"]["phase"] == "Pending", f"the trainer is {pending['status']['phase']}"
    assert not pending["status"].get("nominatedNodeName"), "the scheduler makes room for the trainer"
    assert is_ready(world.kubectl.one("pod", _SERVING, "-n", OTHERS)), "the pod of others was taken away"
    # Whoever may preempt does: it is the policy that held the trainer back, not the scheduler.
    _preempts(world)
    world.kubectl("delete", "namespace", OTHERS, "--wait=true", "--timeout=60s")
    pod = _trainer(world)
    return f"pending: {said.split('. ')[0]}; then on {pod['spec']['nodeName']}"


def _preempts(world: World) -> None:
    """Take the GPU with a pod of the trainer's priority that may preempt; the pod that had it goes."""
    urgent = {
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "urgent"}, "value": 1000,
        "preemptionPolicy": "PreemptLowerPriority",
    }  # fmt: skip
    pod = _with_gpu("urgent")
    pod["spec"]["priorityClassName"] = "urgent"
    try:
        world.kubectl("create", "-n", OTHERS, "-f", "-", given=documents([urgent, pod]))
        eventually(lambda: is_ready(world.kubectl.one("pod", "urgent", "-n", OTHERS)), "the urgent pod takes the GPU")
        left = world.kubectl("get", "pod", _SERVING, "-n", OTHERS, "--ignore-not-found")
        assert not left, "both have the one GPU"
    finally:
        world.kubectl("delete", "priorityclass", "urgent", "--ignore-not-found")


def _trainer(world: World) -> dict[str, Any]:
    return eventually(lambda: next((pod for pod in world.of("trainer") if is_ready(pod)), None), "a trainer") or {}


def _unschedulable(world: World) -> str:
    conditions = [c for pod in world.of("trainer") for c in pod["status"].get("conditions", ())]
    return next((c["message"] for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"), "")


def _with_gpu(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": OTHERS},
        "spec": {
            "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [{"name": "c", "image": "none:0", "resources": {"limits": {GPU: "1"}}}],
        },
    }  # fmt: skip
