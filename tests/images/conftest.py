"""The images, built once a run, and containers of them that are gone when a module ends."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.parts import SERVICES
from deploy.local.services import port_setting
from tests.images.containers import Container
from tests.images.tools import Engine, build
from tests.support import composed
from tests.support.ports import free_port

#: Unlike anything else: passed to the builds as pip and uv would be told of an index, and looked for in the images.
MARKER = "an-index-nobody-has.invalid"

#: What a container is told instead of compose's own addresses: the stack's.
ADDRESSES = frozenset(
    f"FLYWHEEL_{name}" for name in ("KAFKA", "POSTGRES", "S3", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_BUCKET")
)

#: Makes the container of a service: ``container("recorder", FLYWHEEL_RECORDER_METRICS_PORT="1234")``.
Make = Callable[..., Container]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """buildah and podman."""
    return Engine.find(os.environ)


@pytest.fixture(scope="session")
def images(engine: Engine) -> dict[str, str]:
    """The ids of both images, by name."""
    return build(
        engine, ("services", "trainer"), lambda line: print(line, flush=True), UV_INSECURE_HOST=MARKER  # noqa: T201
    )  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def container(engine: Engine, images: Mapping[str, str], environment: dict[str, str]) -> AsyncIterator[Make]:
    """Make containers as compose.yaml has them, with the demo's settings, in this module's world."""
    made: list[Container] = []
    var = Path(environment["FLYWHEEL_VAR"])

    def make(name: str, arguments: tuple[str, ...] = (), **values: str) -> Container:
        service = copy.deepcopy(composed.services(settings="deploy/compose/demo.env")[name])
        addresses = {name: environment[name] for name in service["environment"] if name in ADDRESSES}
        service["environment"] |= {**addresses, **values}
        service["command"] = [*service["command"], *arguments]
        if name in SERVICES:
            listen(service, port_setting(name), values.get(port_setting(name)) or str(free_port()))
        image = images[service["image"].removeprefix("flywheel/").partition(":")[0]]
        made.append(Container(engine, name, service, image, var / f"{name}-{len(made)}.log"))
        return made[-1]

    yield make
    for each in reversed(made):
        await each.remove()


def listen(service: dict[str, Any], setting: str, port: str) -> None:
    """Have a service, and its health check, use another port: this machine's may be taken."""
    service["environment"][setting] = port
    check = service["healthcheck"]["test"]
    check[-1] = re.sub(r":\d+/", f":{port}/", check[-1])
