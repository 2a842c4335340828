"""What can be said of the images without building them."""

from __future__ import annotations

import re
import subprocess
import tomllib

from tests.support.processes import ROOT

IMAGES = ROOT / "deploy" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text(encoding="utf-8")


def argument(name: str) -> str:
    """Return a build argument's default."""
    return re.findall(rf"^ARG {name}=(\S+)$", DOCKERFILE, re.MULTILINE)[0]


def test_the_base_is_pinned_and_every_stage_starts_from_it() -> None:
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", argument("BASE"))
    froms = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    stages = {stage for _, stage in froms}
    assert {source for source, _ in froms} <= stages | {"${BASE}"}
    assert {"services", "trainer"} <= stages


def test_its_python_is_the_one_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert argument("BASE").rpartition(":")[2].startswith(f"{oldest}.")


def test_it_installs_with_the_uv_of_make_setup() -> None:
    setup = (ROOT / "deploy" / "local" / "setup.sh").read_text(encoding="utf-8")
    assert f"UV_VERSION={argument('UV_VERSION')}\n" in setup


def test_the_script_tells_what_it_does_not_know() -> None:
    def build(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [IMAGES / "build.sh", *arguments], env={"PATH": "/usr/bin:/bin", **environ},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert build("recorder").returncode == 2 and "usage:" in build("recorder").stderr
    assert build(ENGINE="rkt").returncode == 2 and "none of docker, podman, buildah" in build(ENGINE="rkt").stderr
    empty = build("services", ENGINE="docker", UV_CACHE="/tmp/somewhere")
    assert empty.returncode == 2 and "podman or buildah" in empty.stderr
