"""``compose.yaml``: Compose takes it, it says of Flywheel what the code says, and nothing of ours may do more."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deploy.local.parts import SERVICES
from deploy.local.services import port_setting
from examples.market import demo
from examples.market.fleet import JUDGE, Recipe
from tests.manifests.conftest import built
from tests.manifests.resources import one
from tests.manifests.test_policies import PINNED
from tests.support.composed import SECRETS, ours, project, read, seconds, services
from tests.support.processes import ROOT
from tests.support.settings import fields

COMPOSE = ROOT / "deploy" / "compose"

#: Those of ours that end, or that a person runs.
PASSING = frozenset({"migrate", "base-model", "cli"})


def listening(name: str) -> int:
    """Return the port that a service listens on in its container."""
    section, field = fields()[port_setting(name)]
    return int(services()[name]["environment"].get(port_setting(name)) or section.model_fields[field].get_default())


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "deploy/compose/gpu.yaml")])
def test_compose_takes_it(files: tuple[str, ...]) -> None:
    assert {*SERVICES, "migrate", "kafka", "postgres", "s3", "prometheus", "grafana"} <= services(files).keys()


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.yaml"
    spoilt.write_text("services: {recorder: {resart: always}}", encoding="utf-8")
    done = read(SECRETS, ("compose.yaml", os.path.relpath(spoilt, ROOT)))
    assert done.returncode == 1 and "resart" in done.stderr


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_without_a_secret_nothing_starts_and_it_says_how_to_make_one(missing: str) -> None:
    done = read({name: value for name, value in SECRETS.items() if name != missing})
    assert done.returncode == 1
    assert f"{missing} is missing a value: run make secrets" in done.stderr


def test_no_secret_is_in_the_file() -> None:
    for name, service in services().items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|POSTGRES$", variable):
                assert any(secret in value for secret in SECRETS.values()), (name, variable)


def test_secrets_are_made_once_for_their_owner_alone_and_what_is_there_stays(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "compose" / "secrets.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((COMPOSE / "secrets.sh").read_bytes())
    (tmp_path / ".env").write_text("GATEWAY_TOKEN=mine\nS3_SECRET_KEY=\nOTHER=1", encoding="utf-8")
    (tmp_path / ".env").chmod(0o644)
    subprocess.run(["bash", script], check=True, capture_output=True)
    made = env_file(tmp_path / ".env")
    assert made.keys() == SECRETS.keys() | {"OTHER"}
    assert (made["GATEWAY_TOKEN"], made["OTHER"]) == ("mine", "1")
    others = [made[name] for name in SECRETS if name != "GATEWAY_TOKEN"]
    # Letters and digits alone: one of them stands in a URL.
    assert len(set(others)) == 3 and all(re.fullmatch(r"[0-9a-f]{48}", value) for value in others)
    subprocess.run(["bash", script], check=True, capture_output=True)
    assert env_file(tmp_path / ".env") == made
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_our_services_run_what_the_code_has() -> None:
    assert {name: services()[name]["command"] for name in SERVICES} == {
        name: ["python", "-m", f"services.{name}"] for name in SERVICES
    }
    assert services()["migrate"]["command"] == ["python", "-m", "flywheel.storage"]


@pytest.mark.parametrize("settings", [None, "deploy/compose/demo.env"])
def test_every_setting_exists_and_takes_its_value(settings: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    known = fields()
    for name, service in ours(services(("compose.yaml", "deploy/compose/gpu.yaml"), settings)).items():
        given = {n: v for n, v in service["environment"].items() if n.startswith("FLYWHEEL_")}
        assert given.keys() <= known.keys(), name
        with monkeypatch.context() as patched:
            for variable, value in given.items():
                patched.setenv(variable, value)
            for section in {known[variable][0] for variable in given}:
                section()  # raises where a value does not fit


def test_each_service_is_told_where_everything_is() -> None:
    at = {
        "KAFKA": "kafka:9092",
        "S3": "http://s3:8333",
        "POSTGRES": "postgresql://flywheel:pg-4f1c@postgres:5432/flywheel",
    }
    for name in (*SERVICES, "cli"):
        given = services()[name]["environment"]
        assert {key: given[f"FLYWHEEL_{key}"] for key in at} == at, name
        assert given["FLYWHEEL_S3_SECRET_KEY"] == services()["s3"]["environment"]["AWS_SECRET_ACCESS_KEY"]
        assert given["FLYWHEEL_S3_ACCESS_KEY"] == services()["s3"]["environment"]["AWS_ACCESS_KEY_ID"]
    database = services()["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"], database["POSTGRES_PASSWORD"]) == (
        "flywheel", "flywheel", "pg-4f1c",
    )  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_listens_and_is_asked_on_one_port(name: str) -> None:
    service = services()[name]
    host = "FLYWHEEL_GATEWAY_HOST" if name == "gateway" else "FLYWHEEL_METRICS_HOST"
    assert service["environment"][host] == "0.0.0.0"
    assert service["healthcheck"]["test"] == [
        "CMD", "python", "-m", "flywheel.healthcheck", f"http://127.0.0.1:{listening(name)}/readyz",
    ]  # fmt: skip


def test_nothing_is_open_beyond_this_machine_and_no_port_twice() -> None:
    published = [port for service in services().values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert len({port["published"] for port in published}) == len(published)
    (gateway,) = services()["gateway"]["ports"]
    assert gateway["target"] == listening("gateway")
    assert services()["gateway"]["environment"]["FLYWHEEL_GATEWAY_TOKEN"] == SECRETS["GATEWAY_TOKEN"]


@pytest.mark.parametrize("name", sorted(ours(services())))
def test_what_is_ours_can_gain_no_rights_and_writes_only_where_it_may(name: str) -> None:
    service = services()[name]
    assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001:10001", True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] and not {"privileged", "network_mode", "pid", "ipc", "devices"} & service.keys()
    volumes = [mount["target"] for mount in service.get("volumes", ())]
    writable = [*volumes, *(mount.partition(":")[0] for mount in service["tmpfs"])]
    assert set(writable) <= {"/tmp", "/var/lib/flywheel"}
    var = service["environment"]["FLYWHEEL_VAR"]
    assert name in ("migrate", "cli") or any(Path(var).is_relative_to(where) for where in writable)


@pytest.mark.parametrize("name", sorted(services()))
def test_everything_is_pinned_bounded_started_again_and_asked_how_it_is(name: str) -> None:
    service = services()[name]
    assert PINNED.match(service["image"]), service["image"]
    assert int(service["mem_limit"]) > 0
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "no-new-privileges:true" in service["security_opt"]
    if name in PASSING:
        assert service["restart"] in ("no", "on-failure:5")
    else:
        assert service["restart"] == "unless-stopped"
        assert "healthcheck" in service or service["profiles"] == ["demo"], "an agent has no port"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_the_memory_and_the_time_that_a_cluster_gives_it(name: str) -> None:
    pod = one(built("prod"), "Deployment", name)["spec"]["template"]["spec"]
    units = {"Mi": 2**20, "Gi": 2**30}
    limit = pod["containers"][0]["resources"]["limits"]["memory"]
    service = services()[name]
    assert int(service["mem_limit"]) == int(limit[:-2]) * units[limit[-2:]]
    assert seconds(service["stop_grace_period"]) == pod["terminationGracePeriodSeconds"]
    assert seconds(service["stop_grace_period"]) > float(service["environment"]["FLYWHEEL_STOP_GRACE_S"])


@pytest.mark.parametrize("name", SERVICES)
def test_services_start_after_what_they_need(name: str) -> None:
    conditions = {on: each["condition"] for on, each in services()[name]["depends_on"].items()}
    assert conditions == {
        "migrate": "service_completed_successfully", "kafka": "service_healthy", "s3": "service_healthy",
    }  # fmt: skip
    assert services()["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_images_are_those_of_this_version_and_of_the_cluster() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {service["image"] for service in ours(services()).values()}
    assert images == {f"flywheel/services:{version}", f"flywheel/trainer:{version}"}
    assert services()["trainer"]["image"].startswith("flywheel/trainer:")
    elsewhere = read({**SECRETS, "REGISTRY": "registry.example.com/ai/", "TAG": "7"})
    assert "registry.example.com/ai/flywheel/services:7" in elsewhere.stdout


def test_our_images_are_never_taken_from_a_registry_unasked() -> None:
    assert {service["pull_policy"] for service in ours(services()).values()} == {"never"}


def test_the_demo_is_the_demo() -> None:
    recipe = Recipe()
    assert env_file(COMPOSE / "demo.env") == demo.settings(recipe)
    agents = {name: service for name, service in services().items() if service.get("profiles") == ["demo"]}
    desks = {f"desk-{number}": strategies for number, strategies in enumerate(recipe.desks, start=1)}
    assert agents.keys() == {"base-model", JUDGE, *desks}
    start = ["python", "-m", "examples.market.agent", "--agent-id"]
    for name, strategies in desks.items():
        wanted = [word for strategy in strategies for word in ("--strategy", str(strategy))]
        assert agents[name]["command"] == [*start, name, *wanted]
    assert agents[JUDGE]["command"] == [*start, JUDGE, "--held-out", str(recipe.held_out)]


def test_settings_of_a_users_own_reach_every_service() -> None:
    assert env_file(COMPOSE / "settings.env") == {}
    for name, service in ours(services(settings="deploy/compose/demo.env")).items():
        assert service["environment"]["FLYWHEEL_TRAINER_ITERATIONS"] == "4", name


def test_the_trainer_gets_a_gpu_where_one_is_asked_for() -> None:
    trainer: dict[str, Any] = services(("compose.yaml", "deploy/compose/gpu.yaml"))["trainer"]
    (device,) = trainer["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert trainer["environment"]["FLYWHEEL_TRAINER_DEVICE"] == "cuda"


def test_no_volume_is_declared_for_nothing() -> None:
    used = {m["source"] for s in services().values() for m in s.get("volumes", ()) if m["type"] == "volume"}
    assert project()["volumes"].keys() == used
