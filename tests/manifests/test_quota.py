"""The namespace's quota has room for everything at its most, and not for twice of it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.cluster.operands import operands
from tests.manifests.conftest import built
from tests.manifests.resources import Resource, of_kind, one, pods
from tests.manifests.test_agrees_with_code import most

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def amount(quantity: str) -> float:
    """Return a quantity of Kubernetes as a number of cores, bytes or pieces."""
    found = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    assert found, quantity
    return float(found[1]) * _UNITS[found[2]]


def needs(spec: Resource) -> Counter[str]:
    """Return what the quota counts of one pod: its containers together, or a larger one that runs before them."""
    total: Counter[str] = Counter()
    at_first: Counter[str] = Counter()
    for container in spec.get("initContainers", ()):
        one_of = counted(container)
        total += one_of if container.get("restartPolicy") == "Always" else Counter()
        at_first |= total if container.get("restartPolicy") == "Always" else total + one_of
    for container in spec["containers"]:
        total += counted(container)
    return (total | at_first) + Counter({"pods": 1})


def counted(container: Resource) -> Counter[str]:
    resources = container["resources"]
    asked = {f"requests.{name}": amount(value) for name, value in resources["requests"].items()}
    limits = {"limits.memory": amount(resources["limits"]["memory"])}
    return Counter({**asked, **limits})


def at_most(resources: list[dict[str, Any]]) -> Counter[str]:
    """Return what everything takes at its most replicas, with the pods that rolling updates add."""
    total: Counter[str] = Counter()
    for pod in pods(resources):
        kind, name = pod.owner.split("/")
        number = (
            most(resources, name) if kind == "Deployment" else one(resources, kind, name)["spec"].get("replicas", 1)
        )
        for _ in range(number):
            total += needs(pod.spec)
    for resource in operands(resources):
        if resource["kind"] == "Pod":
            total += needs(resource["spec"])
    return total


@pytest.mark.parametrize("overlay", ["prod", "gpu"])
def test_everything_at_its_most_fits_the_quota_and_a_quarter_more(overlay: str) -> None:
    resources = built(overlay)
    (quota,) = of_kind(resources, "ResourceQuota")
    allowed = {name: amount(value) for name, value in quota["spec"]["hard"].items()}
    wanted = at_most(resources)
    assert wanted.keys() == allowed.keys()
    for name, value in wanted.items():
        if name.endswith("nvidia.com/gpu"):
            assert allowed[name] == value == 1  # the trainer's volume has one writer
        else:
            assert 1.25 * value <= allowed[name] <= 1.75 * value, f"{name}: {value:,.1f} of {allowed[name]:,.1f}"
