"""From one state to the next: overlays, versions, a setting, a version that does not work, back, and all of it away."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.kubectl import NAMESPACE
from tests.cluster.nodes import NEVER_READY
from tests.cluster.world import OVERLAYS, World, eventually, none_left

#: What the Topic Operator puts on every KafkaTopic, and takes off when it has deleted the topic.
_FINALIZER = "strimzi.io/topic-operator"
_STOPPED_S = 10.0
_REVISION = "deployment.kubernetes.io/revision"


def the_small_store_is_not_converted(world: World, folder: Path) -> str:
    """The API server refuses to make four servers of dev's one store; taken away as the page says, the way is free."""
    said = world.kubectl.refusal("apply", "--server-side", "--dry-run=server", "-k", str(folder))
    assert refused(said) == ["StatefulSet minio"], said
    world.kubectl("delete", "statefulset/minio", "pvc/data-minio-0", "kafka/flywheel", "kafkanodepool/brokers")
    world.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(folder))
    return "the StatefulSet alone, until it is deleted"


def a_finished_job_is_replaced(world: World, folder: Path) -> str:
    """A new version is refused for the job alone, and taken once the finished job is deleted, as the page says."""
    said = world.kubectl.refusal("apply", "--server-side", "--dry-run=server", "-k", str(folder))
    assert refused(said) == ["Job migrate"], said
    _delete_job(world)
    world.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(folder))
    return "the job alone, until it is deleted"


def refused(said: str) -> list[str]:
    """Return which resources the API server refused of those that were applied together.

    Raises AssertionError where anything else went wrong.
    """
    others = [line for line in said.splitlines() if line.startswith(("Error", "error"))]
    assert not others, others
    return [f"{kind} {name}" for kind, name in re.findall(r'^The (\w+) "([^"]+)" is invalid', said, re.MULTILINE)]


def rolls(world: World, folder: Path, image: str) -> str:
    """Applying another version rolls every service to it.

    Meanwhile none falls below its number, and the trainer, whose volume has one writer, is never there twice.
    """
    _delete_job(world)
    with watched(world) as lines:
        world.kubectl("apply", "--server-side", "-k", str(folder))
        done = world.rolled_out()
    eventually(lambda: _images(world) == {image}, f"every pod has {image}")
    nothing_is_stuck(world)
    return f"{done} rolled to {image}; {below(lines())}"


def _delete_job(world: World) -> None:
    world.kubectl("delete", "job", "migrate", "--ignore-not-found")


def below(lines: list[str]) -> str:
    """Hold what was watched of Deployments against what they promise. Raises AssertionError where one fell short."""
    rows = [line.split() for line in lines if line and not line.startswith("NAME")]
    assert rows, "nothing was seen of the rollout"
    for name, *numbers in rows:
        wanted, there, available = (0 if number == "<none>" else int(number) for number in numbers)
        if name == "trainer":
            assert there <= 1, f"{there} trainers at once"
        else:
            assert available >= wanted, f"{name} fell to {available} of {wanted}"
    return f"{len(rows)} states seen, none below"


@contextmanager
def watched(world: World) -> Iterator[Callable[[], list[str]]]:
    """Have kubectl write down each state of the Deployments meanwhile; yield how to read them."""
    output = world.work / "watched.txt"
    columns = "NAME:.metadata.name,WANTED:.spec.replicas,THERE:.status.replicas,AVAILABLE:.status.availableReplicas"
    watching = world.kubectl.start("get", "deployments", "--watch", "-o", f"custom-columns={columns}", output=output)
    try:
        eventually(lambda: output.read_text(encoding="utf-8").count("\n") > 1, "kubectl watches")
        yield lambda: output.read_text(encoding="utf-8").splitlines()
    finally:
        watching.terminate()
        try:
            watching.wait(_STOPPED_S)
        except subprocess.TimeoutExpired:
            watching.kill()
            watching.wait()


def a_changed_setting_rolls(world: World, folder: Path) -> str:
    """A changed setting is another ConfigMap, and so rolls every service to it."""
    before = _settings(world)
    world.kubectl("apply", "--server-side", "-k", str(folder))
    world.rolled_out()
    eventually(lambda: len(_settings(world)) == 1 and not _settings(world) & before, "every pod has the new settings")
    nothing_is_stuck(world)
    return f"{', '.join(before)} to {', '.join(_settings(world))}"


def a_bad_version_harms_nobody(world: World, folder: Path, good: Path) -> str:
    """Its pods replace none that serves; the rollout is seen to hang; applying the good version again ends it."""
    with watched(world) as lines:
        world.kubectl("apply", "--server-side", "-k", str(folder))
        for service in ("recorder", "gateway"):
            said = world.kubectl.refusal("rollout", "status", f"deployment/{service}", "--timeout=4s")
            assert "timed out" in said, said
        world.kubectl("apply", "--server-side", "-k", str(good))
        world.rolled_out()
    nothing_is_stuck(world)
    return f"hung as it should, and went back; {below(lines())}"


def broken(world: World, base: Path) -> Path:
    """Return an overlay on ``base`` whose recorder and gateway never become ready."""
    patch = json.dumps([{"op": "add", "path": "/spec/template/metadata/annotations", "value": {NEVER_READY: "true"}}])
    targets = [{"target": {"kind": "Deployment", "name": name}, "patch": patch} for name in ("recorder", "gateway")]
    return world.variant("broken", base, patches=targets)


def nothing_is_stuck(world: World) -> str:
    """Hold that nothing is left of what was before. Raises AssertionError naming what is."""
    none_left(lambda: _stuck(world), "stuck")
    return "no pod on its way out, no old replicas"


def _stuck(world: World) -> list[str]:
    pods = world.kubectl.items("pods")
    found = [f"pod {pod['metadata']['name']}" for pod in pods if "deletionTimestamp" in pod["metadata"]]
    current = {
        d["metadata"]["name"]: d["metadata"]["annotations"][_REVISION] for d in world.kubectl.items("deployments")
    }
    for replicas in world.kubectl.items("replicasets"):
        metadata = replicas["metadata"]
        old = metadata["annotations"][_REVISION] != current.get(metadata["ownerReferences"][0]["name"])
        if old and (replicas["spec"]["replicas"] or replicas["status"]["replicas"]):
            found.append(f"replicas {metadata['name']}")
    return found


def back_to_a_trainer_without_gpu(world: World) -> str:
    """From gpu to prod as the page says: what only gpu has is deleted; a trainer that was scaled to zero is back."""
    world.scale("trainer", 0)
    world.kubectl("delete", "-f", str(OVERLAYS / "gpu" / "trainer.yaml"), "--wait=false")
    world.kubectl("delete", "hpa", "keda-hpa-trainer", "--ignore-not-found")  # KEDA's, which goes with its ScaledObject
    _delete_job(world)  # of the other version
    world.kubectl("apply", "--server-side", "-k", str(OVERLAYS / "prod"))
    world.rolled_out()
    (pod,) = eventually(lambda: world.of("trainer"), "a trainer")
    assert "nodeSelector" not in pod["spec"], f"it asks for {pod['spec']['nodeSelector']}"
    eventually(
        lambda: not world.kubectl("get", "pvc", "trainer-checkpoints", "--ignore-not-found"), "its volume is gone"
    )
    nothing_is_stuck(world)
    return f"a trainer on {pod['spec']['nodeName']}, no volume, no scaler of it"


def everything_goes(world: World, folder: Path) -> str:
    """Deleted as the page says, topics first while their operator lives, nothing is left: namespace, volume, class."""
    topics = world.kubectl("get", "kafkatopics", "-o", "name").split()
    for topic in topics:
        world.kubectl("patch", topic, "--type=merge", "-p", f'{{"metadata": {{"finalizers": ["{_FINALIZER}"]}}}}')
    world.kubectl("delete", "kafkatopics", "--all", "--wait=false")
    assert len(world.kubectl.items("kafkatopics")) == len(topics), "gone before their operator had a say"
    for topic in topics:
        world.kubectl("patch", topic, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    world.kubectl("delete", "-k", str(folder), "--ignore-not-found", "--timeout=90s")
    eventually(lambda: not world.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"), "the namespace is gone")
    eventually(lambda: not world.kubectl("get", "pv", "-o", "name"), "the volumes are gone")
    clusterwide = {r["kind"] for r in world.built(folder) if "namespace" not in r["metadata"]}
    left = [
        name
        for kind in clusterwide - {"Namespace"}
        for name in world.kubectl("get", kind, "-o", "name").split()
        if "flywheel" in name
    ]
    assert not left, f"left: {', '.join(left)}"
    return f"{len(world.built(folder))} resources, {len(topics)} topics among them"


def _images(world: World) -> set[str]:
    found = [
        c["image"] for pod in world.pods() for c in pod["spec"]["containers"] if c["image"].startswith("flywheel/")
    ]
    return {image.split(":")[1] for image in found}


def _settings(world: World) -> set[str]:
    return {
        source["configMapRef"]["name"]
        for pod in world.pods()
        for container in pod["spec"]["containers"]
        for source in container.get("envFrom", ())
    }
