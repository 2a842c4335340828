"""What of ``make cluster-test`` can be told without a cluster: its verdicts are none that cannot fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.local.parts import StackError
from tests.cluster.changing import below, refused
from tests.cluster.nodes import GPU, GPU_NODE, ZONES, nodes
from tests.cluster.operators import PAGE, secrets_from_outside
from tests.cluster.programs import KUBERNETES, MODULE, find_programs, version
from tests.cluster.report import Report, row, write
from tests.cluster.running import references
from tests.cluster.world import eventually


def silent(line: str) -> None: ...


def alive() -> None: ...


def holds() -> str:
    return "seen"


def does_not(reason: str) -> str:
    raise AssertionError(reason)


def test_a_report_is_good_when_something_was_asked_and_all_of_it_held() -> None:
    report = Report(silent, alive)
    assert not report.ok
    report.check("a", "holds", holds)
    assert report.ok and report.written({})["ok"]
    report.check("a", "does not", does_not, "because")
    report.check("a", "holds again", holds)
    written = report.written({"kubernetes": "v1"})
    assert (written["ok"], written["checks"], written["failed"]) == (False, 3, ["a: does not"])
    assert [result["seen"] for result in written["results"]] == ["seen", "because", "seen"]


def test_an_error_of_a_check_itself_is_a_failure_that_says_where() -> None:
    report = Report(silent, alive)
    assert not report.check("a", "breaks", {}.__getitem__, "missing")
    assert "KeyError: 'missing'" in report.failed[0].seen
    assert "KeyError: 'missing'" in row(report.failed[0])


def test_a_control_plane_that_ended_ends_the_run() -> None:
    def gone() -> None:
        raise StackError("etcd ended")

    report = Report(silent, gone)
    with pytest.raises(StackError, match="etcd"):
        report.check("a", "does not", does_not, "no answer")


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "var" / "report.json", {"ok": True})
    assert [path.name for path in (tmp_path / "var").iterdir()] == ["report.json"]


def test_a_deployment_that_falls_below_its_number_is_seen() -> None:
    steady = [
        "NAME WANTED THERE AVAILABLE",
        "recorder 2 2 2",
        "recorder 2 3 2",
        "trainer 1 <none> <none>",
        "trainer 1 1 1",
    ]
    assert "none below" in below(steady)
    with pytest.raises(AssertionError, match="recorder fell to 1 of 2"):
        below([*steady, "recorder 2 3 1"])
    with pytest.raises(AssertionError, match="recorder fell to 0 of 2"):
        below([*steady, "recorder 2 2 <none>"])
    with pytest.raises(AssertionError, match="2 trainers at once"):
        below([*steady, "trainer 1 2 1"])
    with pytest.raises(AssertionError, match="nothing was seen"):
        below(steady[:1])


def test_what_was_refused_is_told_apart_from_what_went_wrong() -> None:
    job = 'The Job "migrate" is invalid: spec.template: Invalid value: {"labels":{}}: field is immutable'
    assert refused(f"{job}\n") == ["Job migrate"]
    with pytest.raises(AssertionError, match="connection refused"):
        refused(f"{job}\nError from server: connection refused")


def test_references_are_found_however_deep() -> None:
    spec = {
        "containers": [
            {
                "env": [{"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "c"}}],
            }
        ],
        "volumes": [{"persistentVolumeClaim": {"claimName": "p"}}, {"secret": {"secretName": "t"}}],
        "secretTargetRef": [{"parameter": "ca", "name": "u", "key": "ca.crt"}],
    }
    assert set(references(spec)) == {
        ("Secret", "s", "k"), ("ConfigMap", "c", ""), ("PersistentVolumeClaim", "p", ""), ("Secret", "t", ""),
        ("Secret", "u", "ca.crt"),
    }  # fmt: skip


def test_the_page_s_secrets_are_read_with_their_keys() -> None:
    found = secrets_from_outside(PAGE.read_text(encoding="utf-8"))
    assert found["flywheel-s3"] == ["access-key", "secret-key"]


def test_one_node_has_a_gpu_and_keeps_others_off() -> None:
    made = {node["metadata"]["name"]: node for node in nodes()}
    assert [name for name, node in made.items() if GPU in node["status"]["allocatable"]] == [GPU_NODE]
    assert made[GPU_NODE]["spec"]["taints"][0]["effect"] == "NoSchedule"
    assert {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in made.values()} == set(ZONES)


def test_every_part_of_kubernetes_is_of_one_version() -> None:
    text = (MODULE / "go.mod").read_text(encoding="utf-8")
    replaced = re.findall(r"^\s*(k8s\.io/\S+) => (\S+) (v\S+)$", text, re.MULTILINE)
    wanted = version(KUBERNETES).replace("v1.", "v0.")
    assert len(replaced) > 20 and {v for _, _, v in replaced} == {wanted}
    assert all(old == new for old, new, _ in replaced)


def test_without_go_or_with_an_old_one_it_says_what_to_install(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    with pytest.raises(StackError, match="go is needed and not here; install it: apt-get install"):
        find_programs(environ, silent)
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n", encoding="utf-8")
    old.chmod(0o755)
    with pytest.raises(StackError, match=r"Go 1\.21 or newer; here is go version go1\.19\.8"):
        find_programs(environ, silent)
    assert not [path for path in (tmp_path / "flywheel").iterdir() if not path.name.endswith(".lock")]


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(AssertionError, match="a pod: not after 0 s, but None"):
        eventually(lambda: None, "a pod", within=0.0)
