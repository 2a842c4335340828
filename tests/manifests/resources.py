"""Built manifests as plain data: which there are, which pods they make, whom selectors choose. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Resource = Mapping[str, Any]

_TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """The pods that one resource of ours makes. Those of operators are theirs to harden."""

    owner: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def named(resource: Resource) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def of_kind(resources: Iterable[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def one(resources: Iterable[Resource], kind: str, name: str) -> Resource:
    (found,) = [r for r in of_kind(resources, kind) if r["metadata"]["name"] == name]
    return found


def pods(resources: Iterable[Resource]) -> Iterator[PodTemplate]:
    for resource in of_kind(resources, *_TEMPLATED):
        template = resource["spec"]["template"]
        yield PodTemplate(named(resource), template["metadata"]["labels"], template["spec"])


def chooses(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector chooses what has these labels."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_fits(rule, labels.get(rule["key"])) for rule in selector.get("matchExpressions", ()))


def _fits(rule: Mapping[str, Any], value: str | None) -> bool:
    match rule["operator"]:
        case "In":
            return value in rule["values"]
        case "NotIn":
            return value not in rule["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case unknown:
            raise ValueError(f"no such operator: {unknown}")


def strings(value: Any) -> Iterator[str]:
    """Yield every text in a resource, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
