"""Every resource fits the schema of its kind, strictly: misspelt fields are errors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.manifests.conftest import built
from tests.manifests.resources import Resource, named, one
from tests.manifests.schemas import problems, validators

VERSION = "1.37"


def unfit(resource: Resource, definitions: Path) -> list[str]:
    """Return what is wrong with a resource, by the definition of its kind or by Kubernetes's own schemas."""
    validator = validators(definitions).get((resource["apiVersion"], resource["kind"]))
    if validator is not None:
        return list(problems(validator, resource))
    try:
        kubernetes_validate.validate(dict(resource), VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"no schema for {resource['apiVersion']} {resource['kind']}"]
    return []


def test_every_resource_fits_its_schema(resources: list[dict[str, Any]], definitions: Path) -> None:
    found = {named(r): wrong for r in resources if (wrong := unfit(r, definitions))}
    assert found == {}
    assert len(resources) > 50


def copied(resource: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(dict(resource))


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [("Deployment", "recorder", "replica"), ("KafkaTopic", "flywheel.events", "partition"),
     ("Cluster", "flywheel-postgres", "instance"), ("ScaledObject", "recorder", "maxReplicas"),
     ("PodMonitor", "services", "podMetricsEndpoint")],
)  # fmt: skip
def test_a_misspelt_field_is_refused(kind: str, name: str, field: str, definitions: Path) -> None:
    spoilt = copied(one(built("prod"), kind, name))
    spoilt["spec"][field] = 1
    assert any(field in wrong for wrong in unfit(spoilt, definitions))


def test_a_value_of_another_type_is_refused(definitions: Path) -> None:
    spoilt = copied(one(built("prod"), "KafkaTopic", "flywheel.events"))
    spoilt["spec"]["partitions"] = "twelve"
    assert unfit(spoilt, definitions)
