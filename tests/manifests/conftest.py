"""What every test of the manifests starts from: the overlays, built once a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.tools import build, find_definitions, find_kustomize
from tests.support.processes import ROOT

OVERLAYS = ("dev", "prod", "gpu")

_built: dict[str, list[dict[str, Any]]] = {}


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay's name, one after the other."""
    return request.param


@pytest.fixture
def resources(overlay: str) -> list[dict[str, Any]]:
    """What the overlay builds to."""
    return built(overlay)


@pytest.fixture(scope="session")
def definitions() -> Path:
    """The folder with the real CustomResourceDefinitions."""
    return find_definitions(os.environ, _say)


def built(overlay: str) -> list[dict[str, Any]]:
    if overlay not in _built:
        text = build(find_kustomize(os.environ, _say), ROOT / "deploy" / "k8s" / "overlays" / overlay)
        _built[overlay] = list(yaml.safe_load_all(text))
    return _built[overlay]
