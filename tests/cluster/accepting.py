"""What the API server takes: definitions, secrets, every resource of an overlay, the pods that operators make."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.kubectl import documents
from tests.cluster.operands import operands
from tests.cluster.operators import PAGE, definitions, namespaces, secrets, secrets_from_outside, secrets_of_operators
from tests.cluster.world import World
from tests.manifests.resources import chooses, named, of_kind, one

#: What the test makes in the operators' place, by label.
OPERANDS = ("strimzi.io/cluster", "cnpg.io/cluster")


def operators_are_there(world: World, folder: Path) -> str:
    """Their definitions are served; their namespaces exist."""
    wanted = definitions(folder)
    world.kubectl.apply([*wanted, *namespaces()])
    world.kubectl(
        "wait", "--for=condition=Established", "--timeout=60s", "crd", *(d["metadata"]["name"] for d in wanted)
    )
    served = sorted(
        f"{d['spec']['names']['kind']} {v['name']}" for d in wanted for v in d["spec"]["versions"] if v["served"]
    )
    return f"{len(wanted)} definitions: {', '.join(served)}"


def secrets_are_made(world: World, folder: Path) -> str:
    """The secrets that the page tells people to make, and those that operators make."""
    outside = secrets_from_outside(PAGE.read_text(encoding="utf-8"))
    operators = secrets_of_operators(world.built(folder))
    assert outside and operators, f"found in {PAGE.name}: {list(outside)}, asked of operators: {list(operators)}"
    twice = outside.keys() & operators.keys()
    assert not twice, f"made by hand and by an operator: {', '.join(twice)}"
    namespace = of_kind(world.built(folder), "Namespace")
    world.kubectl.apply([*namespace, *secrets({**outside, **operators})])
    return f"{len(outside)} by hand as docs/kubernetes.md says, {len(operators)} as Strimzi and CloudNativePG make them"


def applied(world: World, folder: Path) -> str:
    """Every resource is taken, by the command that the page gives, without a warning."""
    built = world.built(folder)
    said, warned = world.kubectl.said("apply", "--server-side", "-k", str(folder))
    assert warned == "", warned
    lines = [line for line in said.splitlines() if line.endswith("serverside-applied")]
    assert len(lines) == len(built), f"{len(lines)} of {len(built)} applied"
    kinds = {resource["kind"] for resource in built}
    return f"{len(lines)} resources of {len(kinds)} kinds, no warning"


def no_difference(world: World, folder: Path) -> str:
    """What is there is what was applied, defaults and all."""
    world.kubectl("diff", "--server-side", "-k", str(folder))  # ends with 1, and the difference, where there is one
    return "no difference"


def applied_again(world: World, folder: Path) -> str:
    """Applying the same again is no conflict and changes nothing, whatever scaled it meanwhile."""
    before = _generations(world)
    world.kubectl("apply", "--server-side", "-k", str(folder))
    moved = [name for name, number in _generations(world).items() if number != before.get(name)]
    assert not moved, f"changed by applying the same again: {', '.join(moved)}"
    return "no conflict, nothing changed"


def _generations(world: World) -> dict[str, int]:
    return {named(r): r["metadata"]["generation"] for r in world.kubectl.items("deployments,statefulsets")}


def operands_are_let_in(world: World, folder: Path) -> str:
    """The pods that the operators make of our resources pass the namespace's Pod Security, quota and anti-affinity."""
    for label in OPERANDS:
        world.kubectl("delete", "pod,pvc", "-l", label, "--wait=true")
    wanted = list(operands(world.built(folder)))
    said, warned = world.kubectl.said("create", "-f", "-", given=documents(wanted))
    assert warned == "", warned
    names = [pod["metadata"]["name"] for pod in of_kind(wanted, "Pod")]
    world.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod", *names)
    assert len(said.splitlines()) == len(wanted), f"{said} of {len(wanted)}"
    return f"{len(names)} pods, as the operators make them: {', '.join(names)}"


def network_is_closed(world: World) -> str:
    """Policies are taken; one denies everything, and each pod of ours is in at least one that opens something."""
    policies = world.kubectl.items("networkpolicies")
    closed = one(policies, "NetworkPolicy", "default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, f"default-deny is {closed}"
    opened = [p["spec"]["podSelector"] for p in policies if p["spec"]["podSelector"]]
    for pod in world.pods():
        labels = pod["metadata"]["labels"]
        assert any(chooses(selector, labels) for selector in opened), f"nothing opens for {pod['metadata']['name']}"
    return f"{len(policies)} policies; kwok's pods have no network, so that they hold is for a network plugin to show"
