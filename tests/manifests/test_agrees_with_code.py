"""Names, numbers and ports of the manifests are those of the code."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from typing import Any

import pytest

from deploy.k8s.generate import files
from deploy.k8s.kafka import IN_STEP, REPLICAS, SERVICES, USERS
from deploy.local.parts import SERVICES as NAMES
from deploy.local.services import port_setting
from flywheel import topics
from flywheel.storage import postgres
from services.gateway import __main__ as gateway
from services.recorder import __main__ as recorder
from tests.manifests.conftest import built
from tests.manifests.resources import Resource, of_kind, one, pods
from tests.support.processes import ROOT
from tests.support.settings import fields

SCALED = {"recorder": topics.EVENTS, "archiver": topics.TRAJECTORIES, "trainer": topics.BATCHES}


def environment(resources: list[dict[str, Any]], service: str) -> dict[str, str]:
    """Return what a service finds in its environment; what comes from secrets is ``from a secret``."""
    container = one(resources, "Deployment", service)["spec"]["template"]["spec"]["containers"][0]
    shared = one(resources, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])["data"]
    return {**shared, **{v["name"]: v.get("value", "from a secret") for v in container["env"]}}


def test_generated_files_are_up_to_date() -> None:
    on_disk = {name: (ROOT / name).read_text(encoding="utf-8") for name in files()}
    assert on_disk == files()


def test_the_five_services_are_there(resources: list[dict[str, Any]]) -> None:
    deployed = {r["metadata"]["name"] for r in of_kind(resources, "Deployment")}
    assert deployed == set(NAMES)
    for name in deployed:
        container = one(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert container["command"] == ["python", "-m", f"services.{name}"]


def test_every_setting_exists_and_takes_its_value(
    resources: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fields()
    for service in NAMES:
        given = environment(resources, service)
        assert given.keys() <= known.keys()
        with monkeypatch.context() as patched:
            for name, value in given.items():
                patched.setenv(name, value)
            for section in {known[name][0] for name in given}:
                section()  # raises where a value does not fit
        assert {"FLYWHEEL_POSTGRES", "FLYWHEEL_S3_SECRET_KEY"} <= {n for n, v in given.items() if v == "from a secret"}


def test_no_secret_setting_has_a_value_here(resources: list[dict[str, Any]]) -> None:
    secret = {n for n, (section, field) in fields().items() if "Secret" in str(section.model_fields[field].annotation)}
    for service in NAMES:
        assert {v for n, v in environment(resources, service).items() if n in secret} == {"from a secret"}


def test_ports_are_those_that_the_services_listen_on(resources: list[dict[str, Any]]) -> None:
    known = fields()
    opened = {
        port["port"]
        for rule in one(resources, "NetworkPolicy", "scrape-services")["spec"]["ingress"]
        for port in rule["ports"]
    }
    wanted: set[int] = set()
    for service in NAMES:
        variable = port_setting(service)
        section, field = known[variable]
        port = int(environment(resources, service).get(variable) or section.model_fields[field].get_default())
        container = one(resources, "Deployment", service)["spec"]["template"]["spec"]["containers"][0]
        assert container["ports"] == [{"name": "http", "containerPort": port}]
        assert one(resources, "Service", service)["spec"]["ports"][0]["port"] == port
        wanted.add(port)
    assert opened == wanted


def test_a_service_may_drain_before_it_is_killed(resources: list[dict[str, Any]]) -> None:
    for service in NAMES:
        spec = one(resources, "Deployment", service)["spec"]["template"]["spec"]
        first = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = float(environment(resources, service)["FLYWHEEL_STOP_GRACE_S"])
        assert spec["terminationGracePeriodSeconds"] > first + grace, service


def test_state_is_written_where_a_volume_is(resources: list[dict[str, Any]]) -> None:
    for service in NAMES:
        spec = one(resources, "Deployment", service)["spec"]["template"]["spec"]
        mounted = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert {environment(resources, service)["FLYWHEEL_VAR"], "/tmp"} <= mounted
        assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_there_is_a_resource_for_every_topic(resources: list[dict[str, Any]], overlay: str) -> None:
    declared = {r["spec"]["topicName"]: r["spec"] for r in of_kind(resources, "KafkaTopic")}
    assert declared.keys() == topics.BY_NAME.keys()
    for name, topic in topics.BY_NAME.items():
        assert declared[name]["partitions"] == topic.partitions
        assert topic.config().items() <= declared[name]["config"].items()
        replicas, in_step = (1, 1) if overlay == "dev" else (REPLICAS, IN_STEP)
        assert (declared[name]["replicas"], declared[name]["config"]["min.insync.replicas"]) == (replicas, str(in_step))


def test_brokers_take_the_largest_message(resources: list[dict[str, Any]]) -> None:
    config = one(resources, "Kafka", "flywheel")["spec"]["kafka"]["config"]
    assert config["message.max.bytes"] == config["replica.fetch.max.bytes"] == topics.MAX_MESSAGE_BYTES


#: Topics that a service only knows something of: the archiver, how long events can be replayed.
KNOWN_OF = {"archiver": {topics.EVENTS.name}}


def test_users_may_do_what_the_services_do_in_code() -> None:
    for user in SERVICES:
        source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "services" / user.name).rglob("*.py"))
        imported = {
            alias.name
            for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
            if isinstance(node, ast.ImportFrom) and node.module == "flywheel.topics"
            for alias in node.names
        }
        used = {getattr(topics, name).name for name in imported if isinstance(getattr(topics, name), topics.Topic)}
        used -= KNOWN_OF.get(user.name, set())
        assert used == {topic.name for topic in (*user.reads, *user.writes)}, user.name
        assert set(re.findall(r'_GROUP = "([^"]+)"', source)) == set(user.groups)


def allowed(resources: list[dict[str, Any]], user: str, operation: str) -> set[str]:
    """Return the topics that a user may do this to, by its resource alone."""
    out: set[str] = set()
    for rule in one(resources, "KafkaUser", user)["spec"]["authorization"]["acls"]:
        name, kind = rule["resource"]["name"], rule["resource"]["type"]
        if kind == "topic" and {operation, "All"} & set(rule["operations"]):
            prefix = rule["resource"]["patternType"] == "prefix"
            out |= {t for t in topics.BY_NAME if t == name or (prefix and t.startswith(name))}
    return out


def test_only_the_deployer_may_say_which_model_agents_run(resources: list[dict[str, Any]]) -> None:
    names = [r["metadata"]["name"] for r in of_kind(resources, "KafkaUser")]
    assert names == [f"flywheel-{name}" for name in sorted(user.name for user in USERS)]
    assert [n for n in names if topics.MODEL_UPDATES.name in allowed(resources, n, "Write")] == ["flywheel-deployer"]


def test_agents_may_record_follow_and_acknowledge_and_nothing_else(resources: list[dict[str, Any]]) -> None:
    assert allowed(resources, "flywheel-agents", "Write") == {
        topics.EVENTS.name, topics.ACKS.name, topics.OUTCOMES.name,
    }  # fmt: skip
    assert allowed(resources, "flywheel-agents", "Read") == {topics.MODEL_UPDATES.name}


def most(resources: list[dict[str, Any]], name: str) -> int:
    """Return how many of a service there can be, with the pod that a rolling update adds."""
    scalers: list[Resource] = [
        r
        for r in of_kind(resources, "ScaledObject", "HorizontalPodAutoscaler")
        if r["spec"]["scaleTargetRef"]["name"] == name
    ]
    spec = one(resources, "Deployment", name)["spec"]
    at_most = [r["spec"].get("maxReplicaCount") or r["spec"]["maxReplicas"] for r in scalers] or [spec["replicas"]]
    return at_most[0] + spec["strategy"].get("rollingUpdate", {}).get("maxSurge", 0)


def test_all_services_at_their_most_fit_into_postgres(resources: list[dict[str, Any]]) -> None:
    pool = inspect.signature(postgres.connect).parameters["max_size"].default
    own = {"gateway": gateway._POOL, "recorder": recorder._POOL}
    pools = {name: own[name] if name in own else pool for name in NAMES}  # noqa: SIM401 - pyright cannot tell
    wanted = sum(most(resources, name) * pools[name] for name in NAMES)
    cluster = one(resources, "Cluster", "flywheel-postgres")["spec"]
    spare = 20  # the operator's, backups, migrations, KEDA, people
    assert wanted + spare <= int(cluster["postgresql"]["parameters"]["max_connections"])


@pytest.mark.parametrize("overlay", ["gpu"])
def test_consumers_are_never_more_than_partitions(overlay: str) -> None:
    resources = built(overlay)
    scaled = {r["metadata"]["name"]: r["spec"] for r in of_kind(resources, "ScaledObject")}
    assert scaled.keys() == SCALED.keys()
    for name, topic in SCALED.items():
        assert scaled[name]["maxReplicaCount"] <= topic.partitions
        assert scaled[name]["scaleTargetRef"]["name"] == name
        assert scaled[name]["minReplicaCount"] >= (0 if name == "trainer" else 1)
        for trigger in scaled[name]["triggers"]:
            if trigger["type"] == "kafka":
                assert trigger["metadata"]["topic"] == topic.name
                assert trigger["metadata"]["consumerGroup"] in {group for user in SERVICES for group in user.groups}


def test_scaling_by_lag_logs_in_as_a_user_who_sees_the_lag() -> None:
    """KEDA takes the user's name from the authentication alone, never from a trigger."""
    resources = built("prod")
    (given,) = one(resources, "TriggerAuthentication", "kafka")["spec"]["configMapTargetRef"]
    user = one(resources, "ConfigMap", given["name"])["data"][given["key"]]
    secrets = {each["name"] for each in one(resources, "TriggerAuthentication", "kafka")["spec"]["secretTargetRef"]}
    assert (given["parameter"], user in secrets) == ("username", True)
    assert allowed(resources, user, "Describe") == topics.BY_NAME.keys()
    assert allowed(resources, user, "Write") == allowed(resources, user, "Read") == set()
    triggers = [t for r in of_kind(resources, "ScaledObject") for t in r["spec"]["triggers"] if t["type"] == "kafka"]
    assert triggers and not any("username" in trigger["metadata"] for trigger in triggers)


def test_the_trainer_of_the_gpu_overlay_lands_on_a_gpu_and_keeps_its_state() -> None:
    resources = built("gpu")
    spec = one(resources, "Deployment", "trainer")["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["nodeSelector"] and [t["key"] for t in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert one(resources, "PriorityClass", spec["priorityClassName"])["preemptionPolicy"] == "Never"
    (var,) = [v for v in spec["volumes"] if v["name"] == "var"]
    assert one(resources, "PersistentVolumeClaim", var["persistentVolumeClaim"]["claimName"])
    assert environment(resources, "trainer")["FLYWHEEL_TRAINER_DEVICE"] == "cuda"


def test_images_carry_the_version_of_the_project(resources: list[dict[str, Any]]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {c["image"] for pod in pods(resources) for c in pod.containers if c["image"].startswith("flywheel/")}
    assert images == {f"flywheel/services:{version}", f"flywheel/trainer:{version}"}


def test_every_secret_that_is_asked_for_is_documented(resources: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    wanted = {
        (v["valueFrom"]["secretKeyRef"]["name"], v["valueFrom"]["secretKeyRef"]["key"])
        for pod in pods(resources)
        for c in pod.containers
        for v in c.get("env", ())
        if "secretKeyRef" in v.get("valueFrom", {})
    }
    assert wanted
    for name, key in wanted:
        assert any(f"`{name}`" in line and f"`{key}`" in line for line in page.splitlines()), f"{name}: {key}"
