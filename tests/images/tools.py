"""Builds the images without a container daemon, and without a registry: buildah, on a base that debootstrap makes.

Everything is kept in the user's cache, so that a second build takes seconds. Needs root, and Debian's packages buildah,
podman, runc and debootstrap.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.fetching import alone, default_cache, run
from deploy.local.parts import Say, StackError
from tests.manifests.tools import needed
from tests.support.processes import ROOT

SUITE = "bookworm"
BASE = f"localhost/flywheel-base:{SUITE}"

#: What is not the project's own in the base: Python, its venv module, and certificates.
_PACKAGES = "python3,python3-venv,ca-certificates"

_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{root}"
runroot = "/run/flywheel-images-{digest}"
"""
#: Root without CAP_SYS_RESOURCE may not raise limits, which podman does by itself.
_CONTAINERS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


@dataclass(frozen=True, slots=True)
class Engine:
    """buildah and podman over one store of our own, apart from whatever else the machine has."""

    folder: Path
    environ: Mapping[str, str]

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Engine:
        """Return it, ready. Raises StackError saying what is missing here."""
        if os.geteuid() != 0:
            raise StackError("images are built and run here as root: debootstrap makes the base")
        for program in ("buildah", "podman", "runc", "debootstrap"):
            needed(program, program, environ)
        folder = default_cache(environ) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        storage = _STORAGE.format(root=folder / "store", digest=_short(str(folder)))
        (folder / "storage.conf").write_text(storage, encoding="utf-8")
        (folder / "containers.conf").write_text(_CONTAINERS, encoding="utf-8")
        ours = {
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
        }
        return cls(folder, {**environ, **ours})

    def call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run buildah or podman to its end."""
        return subprocess.run(argv, env=dict(self.environ), capture_output=True, text=True, check=False)

    def must(self, *argv: str) -> str:
        """Run it and return what it printed. Raises StackError with what it said when it fails."""
        done = self.call(*argv)
        if done.returncode:
            raise StackError(f"{' '.join(argv[:3])} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout.strip()

    def inspect(self, image: str) -> Mapping[str, Any]:
        """Return what an image says of itself."""
        return json.loads(self.must("podman", "image", "inspect", image))[0]


def ensure_base(engine: Engine, say: Say) -> None:
    """Make the base image where it is missing: a minimal Debian with Python, from Debian's own packages (a minute)."""
    if engine.call("buildah", "inspect", "--type", "image", BASE).returncode == 0:
        return
    say(f"images: making a base of Debian {SUITE} with debootstrap, once")
    root = engine.folder / "base"
    engine.must("rm", "-rf", str(root))
    _talking(("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root)), engine, say)
    for left in ("var/cache/apt/archives", "var/lib/apt/lists"):
        engine.must("find", str(root / left), "-type", "f", "-delete")
    container = engine.must("buildah", "from", "scratch")
    try:
        engine.must("buildah", "copy", "--quiet", container, str(root), "/")
        engine.must("buildah", "commit", "--quiet", container, BASE)
    finally:
        engine.must("buildah", "rm", container)
        engine.must("rm", "-rf", str(root))


def build(engine: Engine, targets: Sequence[str], say: Say, **environ: str) -> dict[str, str]:
    """Build ``targets`` with ``deploy/images/build.sh``; return the id of each. Unchanged layers come from the cache.

    The first time the trainer's libraries, 6 GB of them, are written: minutes. What uv downloaded before is used.
    """
    # Two checkouts may build at once: they take turns, and neither takes the other's image for its own.
    tag = f"test-{_short(str(ROOT))}"
    cache = Path(engine.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    told = {"ENGINE": "buildah", "BASE": BASE, "TAG": tag, "UV_CACHE": str(cache), "REGISTRY": "localhost/", **environ}
    with alone(engine.folder / "building"):
        ensure_base(engine, say)
        argv = (str(ROOT / "deploy" / "images" / "build.sh"), *targets, "--", "--network", "host")
        say(f"images: building {' and '.join(targets)}")
        _talking(argv, Engine(engine.folder, {**engine.environ, **told}), say)
        # Layers of former libraries would pile up, 6 GB each time.
        engine.call("podman", "image", "prune", "--force", "--filter", "until=168h")
        return {
            name: engine.must("podman", "image", "inspect", "--format", "{{.Id}}", f"localhost/flywheel/{name}:{tag}")
            for name in targets
        }


def _talking(argv: Sequence[str], engine: Engine, say: Say) -> None:
    run(argv, engine.environ, counts=lambda line: True, progress="images: {} lines of the build", say=say)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
