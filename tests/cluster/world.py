"""What the checks share: the cluster, the manifests as built, and waiting for what the control plane does by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.cluster.kubectl import Kubectl, KubectlError
from tests.support.processes import ROOT

OVERLAYS = ROOT / "deploy" / "k8s" / "overlays"
TRACING = ROOT / "deploy" / "k8s" / "components" / "tracing"

T = TypeVar("T")


@dataclass(slots=True)
class World:
    """A cluster with a way in, a folder for what checks write, and the manifests by their folder, built once."""

    kubectl: Kubectl
    work: Path
    _built: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)

    def built(self, folder: Path) -> list[dict[str, Any]]:
        """Return what a folder of kustomize's builds to. Raises KubectlError."""
        if folder not in self._built:
            self._built[folder] = list(yaml.load_all(self.kubectl("kustomize", str(folder)), Loader=yaml.CSafeLoader))
        return self._built[folder]

    def variant(self, name: str, base: Path, *components: Path, **fields: Any) -> Path:
        """Write an overlay on ``base`` with components, as people write their own; return its folder."""
        folder = self.work / name
        folder.mkdir()
        text = {"resources": [os.path.relpath(base, folder)], **fields}
        if components:
            text["components"] = [os.path.relpath(component, folder) for component in components]
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
        return folder

    def pods(self, *words: str) -> list[dict[str, Any]]:
        """Return the namespace's pods that are not on their way out."""
        return [pod for pod in self.kubectl.items("pods", *words) if "deletionTimestamp" not in pod["metadata"]]

    def of(self, service: str) -> list[dict[str, Any]]:
        """Return the pods of one service of ours."""
        return self.pods("-l", f"app.kubernetes.io/name={service}")

    def rolled_out(self, *, within: str = "90s") -> str:
        """Wait until every Deployment and StatefulSet has what it asks for and nothing older. Raises KubectlError."""
        names = self.kubectl("get", "deployments,statefulsets", "-o", "name").split()
        for name in names:
            self.kubectl("rollout", "status", name, f"--timeout={within}")
        return f"{len(names)} workloads"

    def scale(self, name: str, replicas: int) -> None:
        """Set a Deployment's number as KEDA does. Raises KubectlError."""
        self.kubectl(
            "patch", "deployment", name, "--subresource=scale", "--type=merge", "--field-manager=keda",
            "-p", f'{{"spec": {{"replicas": {replicas}}}}}',
        )  # fmt: skip


def eventually(question: Callable[[], T], what: str, within: float = 60.0) -> T:
    """Ask until the answer is true, and return it.

    ``within`` (seconds) only bounds a failing check. Raises AssertionError saying ``what`` did not come, and the last
    answer.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            answer = question()
        except KubectlError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: {error}") from error
        else:
            if answer:
                return answer
            assert time.monotonic() < deadline, f"{what}: not after {within:.0f} s, but {answer!r}"
        time.sleep(0.2)


def none_left(question: Callable[[], list[str]], what: str, within: float = 60.0) -> None:
    """Ask until nothing is named any more. Raises AssertionError naming what still is."""
    named: list[str] = []

    def done() -> bool:
        named[:] = question()
        return not named

    try:
        eventually(done, what, within)
    except AssertionError as error:
        raise AssertionError(f"{what}: {', '.join(named)}" if named else str(error)) from None


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod is ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
