"""The nodes that kwok plays: two zones, four machines for everything, one with a GPU for those who tolerate it.

A pod that is given a node is ready at once, whatever its image, its probes and its network; unless it is marked as
one that never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.programs import Programs

ZONES = ("a", "b")
GPU_NODE = "gpu-a"
GPU = "nvidia.com/gpu"
#: A pod with this annotation never becomes ready: what a version that does not work looks like from outside.
NEVER_READY = "cluster-test/never-ready"

#: What the default StorageClass is called that comes with kwok's rules for volumes.
_VOLUMES = "storage-class.yaml"


def nodes() -> list[dict[str, Any]]:
    """Return the nodes as resources, to be created: applied, they would lose their size."""
    plain = [_node(f"node-{zone}{number}", zone, cpu=16, memory_gib=64) for zone in ZONES for number in (1, 2)]
    gpu = _node(GPU_NODE, ZONES[0], cpu=32, memory_gib=128)
    # As NVIDIA's operator labels it, and as people keep others off it.
    gpu["metadata"]["labels"]["nvidia.com/gpu.present"] = "true"
    gpu["spec"] = {"taints": [{"key": GPU, "value": "present", "effect": "NoSchedule"}]}
    for size in ("capacity", "allocatable"):
        gpu["status"][size][GPU] = "1"
    return [*plain, gpu]


def kwok_arguments(programs: Programs, folder: Path, kubeconfig: Path, port: int) -> Sequence[str]:
    """Return what kwok is started with; writes its rules into ``folder``."""
    rules = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(programs.stages.glob("*.yaml"))]
    stages = [_with_exception(rule) for rule in rules if rule["kind"] == "Stage"]
    written = folder / "kwok.yaml"
    written.write_text(yaml.safe_dump_all(stages), encoding="utf-8")
    return (
        f"--kubeconfig={kubeconfig}", f"--config={written}", "--manage-all-nodes=true",
        f"--server-address=127.0.0.1:{port}", "--cidr=10.244.0.0/16", "--node-ip=10.240.0.1",
    )  # fmt: skip


def storage_class(programs: Programs) -> dict[str, Any]:
    """Return the default StorageClass, whose claims kwok binds."""
    return yaml.safe_load((programs.stages / _VOLUMES).read_text(encoding="utf-8"))


def _node(name: str, zone: str, *, cpu: int, memory_gib: int) -> dict[str, Any]:
    size = {"cpu": str(cpu), "memory": f"{memory_gib}Gi", "pods": "110", "ephemeral-storage": "200Gi"}
    labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"capacity": dict(size), "allocatable": dict(size)},
    }


def _with_exception(stage: dict[str, Any]) -> dict[str, Any]:
    if stage["metadata"]["name"] == "pod-ready":
        key = f'.metadata.annotations["{NEVER_READY}"]'
        stage["spec"]["selector"]["matchExpressions"].append({"key": key, "operator": "DoesNotExist"})
    return stage
