"""What operators and people have made before us: definitions, namespaces, secrets. The operators do not run."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kubectl import NAMESPACE
from tests.manifests.resources import Resource, of_kind
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "kubernetes.md"

#: Where those operators live that the network policies name.
NAMESPACES = ("keda", "monitoring")


def definitions(folder: Path) -> list[dict[str, Any]]:
    """Return the real CustomResourceDefinitions in a folder."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml")))
    return [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def namespaces() -> list[dict[str, Any]]:
    """Return the operators' namespaces."""
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES]


def secrets_from_outside(page: str) -> dict[str, list[str]]:
    """Return the secrets that the page tells people to make, and their keys: the rows of the table under *Secrets*."""
    section = page.split("## Secrets", 1)[1].split("\n## ", 1)[0]
    rows = (line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `"))
    return {_quoted(name)[0]: _quoted(keys) for name, keys in rows}


def secrets_of_operators(resources: Iterable[Resource]) -> dict[str, list[str]]:
    """Return the secrets that Strimzi and CloudNativePG make of these resources, and their keys."""
    made: dict[str, list[str]] = {}
    for user in of_kind(resources, "KafkaUser"):
        made[user["metadata"]["name"]] = ["password", "sasl.jaas.config"]
    for kafka in of_kind(resources, "Kafka"):
        name = kafka["metadata"]["name"]
        made[f"{name}-cluster-ca-cert"] = ["ca.crt", "ca.p12", "ca.password"]
        made[f"{name}-clients-ca-cert"] = ["ca.crt", "ca.p12", "ca.password"]
    for cluster in of_kind(resources, "Cluster"):
        name = cluster["metadata"]["name"]
        made[f"{name}-app"] = ["username", "user", "password", "dbname", "host", "port", "uri", "jdbc-uri", "pgpass"]
        made[f"{name}-ca"] = ["ca.crt", "ca.key"]
    return made


def secrets(wanted: Mapping[str, Iterable[str]]) -> Iterator[dict[str, Any]]:
    """Yield secrets with these keys. What is in them is nobody's: no program here reads it."""
    for name, keys in wanted.items():
        data = {key: base64.b64encode(b"made by make cluster-test").decode() for key in keys}
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "data": data,
        }


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
