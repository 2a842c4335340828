"""The programs of a control plane, built once a machine: ``control-plane/go.mod`` says which.

To move to another version: change it in ``go.mod``, in the ``replace`` lines too; run ``go mod tidy`` in that folder.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.fetching import alone, default_cache, run
from deploy.local.parts import Say, StackError
from tests.manifests.tools import needed

MODULE = Path(__file__).parent / "control-plane"
KUBERNETES = "k8s.io/kubernetes"
KWOK = "sigs.k8s.io/kwok"

#: How kwok has nodes come up, pods become ready, complete and go, and claims find their volumes.
_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat/node-heartbeat.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
    "volume/fast/storage-class.yaml",
    "volume/fast/pvc-provision.yaml",
    "volume/fast/pvc-delete.yaml",
    "volume/fast/pv-bind.yaml",
    "volume/fast/pv-delete.yaml",
)
#: The first Go that fetches by itself the newer one that go.mod asks for.
_GO = (1, 21)


@dataclass(frozen=True, slots=True)
class Programs:
    """The folder with what was built: one program each, and kwok's rules of how nodes, pods and volumes behave."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        """Return the path of a program."""
        return str(self.folder / name)

    @property
    def etcd(self) -> str:
        """The path of etcd, which Go names after the folder of its source."""
        return self["server"]

    @property
    def stages(self) -> Path:
        """The folder with kwok's own rules."""
        return self.folder / "stages"


def version(module: str) -> str:
    """Return the version of a module that the control plane is built from."""
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (MODULE / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise StackError(f"{MODULE / 'go.mod'} names no {module}")
    return found[1]


def find_programs(environ: Mapping[str, str], say: Say) -> Programs:
    """Return the programs from the user's cache; built first where missing (ten minutes of one processor).

    Raises StackError when Go is missing or too old, or says what it said when it failed.
    """
    wanted = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    name = f"control-plane-{version(KUBERNETES)}-{hashlib.sha256(wanted).hexdigest()[:8]}"
    folder = default_cache(environ) / name
    if folder.exists():
        return Programs(folder)
    with alone(folder):
        if not folder.exists():
            say(f"cluster: building Kubernetes {version(KUBERNETES)} and kwok {version(KWOK)} with Go, once")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
                made = Path(work) / "made"
                _build(made, environ, say)
                made.rename(folder)
    return Programs(folder)


def _build(into: Path, environ: Mapping[str, str], say: Say) -> None:
    go = _go(environ)
    build = {**environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={version(KUBERNETES)}"
    # A folder is what Go takes for one that shall hold several programs.
    argv = (go, "build", "-C", str(MODULE), "-v", "-ldflags", flags, "-o", f"{into}/", "tool")
    run(argv, build, counts=lambda line: True, progress="cluster: {} modules and packages", say=say)
    listed = (go, "list", "-C", str(MODULE), "-m", "-f", "{{.Dir}}", KWOK)
    said = subprocess.run(listed, env=build, capture_output=True, text=True, check=False)
    if said.returncode:
        raise StackError(f"go list {KWOK} failed:\n{said.stderr}")
    (into / "stages").mkdir()
    for stage in _STAGES:
        shutil.copyfile(Path(said.stdout.strip(), "kustomize", "stage", stage), into / "stages" / Path(stage).name)


def _go(environ: Mapping[str, str]) -> str:
    found = needed("go", "golang-go", environ)
    said = subprocess.run((found, "version"), capture_output=True, text=True, check=False).stdout.strip()
    numbers = re.search(r"go(\d+)\.(\d+)", said)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _GO:
        wanted = ".".join(str(number) for number in _GO)
        raise StackError(
            f"the control plane is built once, with Go {wanted} or newer; here is {said}: install a newer one"
        )
    return found
