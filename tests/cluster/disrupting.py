"""Nodes that go: budgets keep a service from losing two pods at once, and a node can be drained."""

from __future__ import annotations

import json

from tests.cluster.accepting import OPERANDS
from tests.cluster.kubectl import NAMESPACE
from tests.cluster.running import unready
from tests.cluster.world import World, eventually, none_left

_DRAINED = "node-a1"


def budgets_refuse_a_second_eviction(world: World, service: str) -> str:
    """While an evicted pod has no successor, the API server refuses to evict another; with one, it is allowed again."""
    nodes = [node["metadata"]["name"] for node in world.kubectl.items("nodes")]
    first, second, *_ = [pod["metadata"]["name"] for pod in world.of(service)]
    world.kubectl("cordon", *nodes)
    try:
        _evict(world, first)
        eventually(lambda: first not in {pod["metadata"]["name"] for pod in world.of(service)}, f"{first} is gone")
        said = world.kubectl.refusal(*_eviction(second), given=_body(second))
        assert "disruption budget" in said, said
    finally:
        world.kubectl("uncordon", *nodes)
    eventually(lambda: _allowed(world, service), "its budget allows one again")
    _evict(world, second)
    world.rolled_out()
    return " ".join(said.split())[:120]


def every_workload_has_a_budget(world: World) -> str:
    """Each Deployment and StatefulSet has a budget that counts its pods and lets one go."""
    budgets = {budget["metadata"]["name"] for budget in world.kubectl.items("pdb")}
    names = {w["metadata"]["name"] for w in world.kubectl.items("deployments,statefulsets") if w["spec"]["replicas"]}
    assert names <= budgets, f"without a budget: {names - budgets}"
    none_left(lambda: [name for name in sorted(names) if _allowed(world, name) != 1], "may not lose exactly one")
    return ", ".join(sorted(names))


def a_node_can_be_drained(world: World) -> str:
    """Drained, a node is left by all of our pods within their budgets, and they are ready elsewhere."""
    # Those that operators make are theirs to move.
    ours = ",".join(f"!{label}" for label in OPERANDS)
    try:
        said = world.kubectl(
            "drain", _DRAINED, "--delete-emptydir-data", "--force", "--timeout=90s", f"--pod-selector={ours}"
        )
        world.rolled_out()
        none_left(lambda: unready(world), "not ready elsewhere")
        left = [p["metadata"]["name"] for p in world.pods("-l", ours) if p["spec"].get("nodeName") == _DRAINED]
        assert not left, f"still there: {', '.join(left)}"
    finally:
        world.kubectl("uncordon", _DRAINED)
    return f"{said.count('evicted')} pods moved off {_DRAINED}"


def _evict(world: World, pod: str) -> None:
    world.kubectl(*_eviction(pod), given=_body(pod))


def _eviction(pod: str) -> tuple[str, ...]:
    return ("create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "-f", "-")


def _body(pod: str) -> str:
    metadata = {"name": pod, "namespace": NAMESPACE}
    return json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})


def _allowed(world: World, service: str) -> int:
    return world.kubectl.one("pdb", service)["status"].get("disruptionsAllowed", 0)
