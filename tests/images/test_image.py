"""What is in the images, and what is not."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping

import pytest

from tests.images.conftest import MARKER
from tests.images.tools import BASE, Engine
from tests.support.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture(params=["services", "trainer"])
def image(request: pytest.FixtureRequest, images: dict[str, str]) -> str:
    """Each image's id."""
    return images[request.param]


def inside(engine: Engine, image: str, *command: str) -> str:
    """Return what a command prints in an image, as its own user, without a network and with a read-only root."""
    return engine.must(
        "podman", "run", "--rm", "--network", "none", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp",
        "--cap-drop=ALL", image, *command,
    )  # fmt: skip


def test_it_says_what_it_is_and_runs_as_nobody_in_particular(engine: Engine, image: str) -> None:
    found = engine.inspect(image)
    labels = found["Config"]["Labels"]
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["StopSignal"] == "SIGTERM"
    assert labels["org.opencontainers.image.version"] == VERSION
    assert {"title", "description", "licenses", "revision", "base.name"} <= {
        name.removeprefix("org.opencontainers.image.") for name in labels
    }
    assert not found["Config"].get("Volumes")


def test_nothing_that_only_builds_need_is_left(engine: Engine, image: str) -> None:
    search = (
        "find / -xdev -type f ( -name uv -o -name gcc -o -name cc -o -name *.a -o -name *.whl -o -path /root/.cache/* "
        "-o -path /var/cache/uv/* -o -path /tools/* -o -path /src/* -o -path /host-uv/* -o -path /run/secrets/* )"
    )

    def found(where: str) -> set[str]:
        # As root: what its own user may not see counts too.
        said = engine.must("podman", "run", "--rm", "--network", "none", "--user", "0", where, *search.split())
        return set(said.splitlines())

    assert found(image) - found(BASE) == set()


def test_no_layer_holds_a_secret_of_the_build(engine: Engine, image: str) -> None:
    said = engine.must("podman", "history", "--no-trunc", "--format", "json", image) + json.dumps(engine.inspect(image))
    assert MARKER not in said
    search = ("grep", "-rslF", MARKER, "/etc", "/opt", "/app", "/root", "/var")
    done = engine.call("podman", "run", "--rm", "--network", "none", "--user", "0", image, *search)
    assert (done.returncode, done.stdout) == (1, ""), "grep found it, or could not look"


def test_everything_of_ours_is_compiled_whatever_its_files_dates(engine: Engine, image: str) -> None:
    program = (
        "import importlib.util, pathlib, sys\n"
        "sources = [p for p in pathlib.Path('/app').rglob('*.py')]\n"
        "compiled = [pathlib.Path(importlib.util.cache_from_source(str(p))) for p in sources]\n"
        "flags = {int.from_bytes(p.read_bytes()[4:8], 'little') for p in compiled}\n"
        "cached = [importlib.util.find_spec(name).cached for name in ('asyncpg', 'aiokafka', 'faust', 'pydantic')]\n"
        "print(len(sources), flags, all(pathlib.Path(c).exists() for c in cached))"
    )
    count, _, rest = inside(engine, image, "python", "-c", program).partition(" ")
    assert int(count) > 100
    assert rest == "{1} True", "1: by hash, and not looked at again"


def test_the_code_in_it_is_this_checkout(engine: Engine, image: str) -> None:
    program = (
        "import hashlib, pathlib, sys\n"
        "for p in sorted(pathlib.Path('/app/services').rglob('*.py')):\n"
        "    print(p.relative_to('/app'), hashlib.sha256(p.read_bytes()).hexdigest())"
    )
    here = [
        f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted((ROOT / "services").rglob("*.py"))
    ]
    assert inside(engine, image, "python", "-c", program).splitlines() == here


def test_the_command_line_works_in_it(engine: Engine, images: Mapping[str, str]) -> None:
    assert inside(engine, images["services"], "flywheel", "--version") == VERSION
    assert "validate" in inside(engine, images["services"])  # its default command is the help
    done = engine.call("podman", "run", "--rm", "--network", "none", images["services"], "flywheel", "up")
    assert done.returncode == 1 and "flywheel[local]" in done.stderr and "Traceback" not in done.stderr


def test_the_trainer_has_torch_with_cuda_and_the_services_have_none(engine: Engine, images: Mapping[str, str]) -> None:
    program = "import importlib.util as u; print([n for n in ('torch', 'trl', 'transformers') if u.find_spec(n)])"
    assert inside(engine, images["services"], "python", "-c", program) == "[]"
    program = "import torch; print(torch.version.cuda.partition('.')[0], torch.cuda.is_available())"
    # No GPU here: that CUDA's libraries load is all that can be seen.
    assert inside(engine, images["trainer"], "python", "-c", program) == "13 False"


def test_sizes_are_not_silly(engine: Engine, images: Mapping[str, str]) -> None:
    base = engine.inspect(BASE)["Size"]
    own = {name: (engine.inspect(image)["Size"] - base) / 1e6 for name, image in images.items()}
    print(f"MB on top of the base: {own}")  # noqa: T201
    assert own["services"] < 250 and own["trainer"] < 7000
