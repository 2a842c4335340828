"""The component that sends traces, on top of an overlay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.parts import SERVICES
from flywheel.settings import ServiceSettings
from tests.manifests.resources import one
from tests.manifests.test_agrees_with_code import environment
from tests.manifests.test_schemas import unfit
from tests.manifests.tools import build, find_kustomize
from tests.support.processes import ROOT


@pytest.fixture
def traced(tmp_path: Path) -> list[dict[str, Any]]:
    """What a person's own overlay builds to."""
    k8s = Path(os.path.relpath(ROOT / "deploy" / "k8s", tmp_path))
    overlay = {"resources": [str(k8s / "overlays" / "prod")], "components": [str(k8s / "components" / "tracing")]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "flywheel", **overlay}))
    return list(yaml.safe_load_all(build(find_kustomize(os.environ, lambda line: None), tmp_path)))


def test_every_service_is_told_to_trace_and_where_to(traced: list[dict[str, Any]]) -> None:
    for service in SERVICES:
        given = environment(traced, service)
        settings = ServiceSettings(otel=given["FLYWHEEL_OTEL"], otel_ratio=given["FLYWHEEL_OTEL_RATIO"])  # pyright: ignore[reportArgumentType]
        assert settings.otel and settings.otel_ratio == 0.01
        assert given["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("http://otel-collector.observability:4318")
        assert given["FLYWHEEL_TOPIC_REPLICATION"] == "3"  # what the overlay says stays


def test_the_services_and_nobody_else_reach_the_collector(traced: list[dict[str, Any]], definitions: Path) -> None:
    policy = one(traced, "NetworkPolicy", "services-to-collector")
    assert unfit(policy, definitions) == []
    (who,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert who["values"] == list(SERVICES)
    (way,) = policy["spec"]["egress"]
    (port,) = way["ports"]
    assert environment(traced, "recorder")["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(f":{port['port']}")
    (to,) = way["to"]
    namespace = to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert f".{namespace}:" in environment(traced, "recorder")["OTEL_EXPORTER_OTLP_ENDPOINT"]
