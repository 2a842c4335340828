"""The fixtures of every test. The real stack starts once a run, when the first test asks for it.

Each test *module* gets an empty world: topics without messages, its own database, bucket and state folder, so that
services run with their real topic and group names. Tests of one module share it: they use ids of their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from flywheel.settings import Connections
from tests.support.processes import ROOT, ServiceProcesses
from tests.support.world import empty_topics, fresh_database, make_topic, unique

if TYPE_CHECKING:
    from deploy.local.stack import LocalStack
    from flywheel.storage.s3 import S3ObjectStore
    from flywheel.topics import Topic

_failed = pytest.StashKey[bool]()
#: Whether a module has used the topics since the stack started.
_topics_used = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    """A developer's own FLYWHEEL_ variables and running stack must not reach the tests."""
    for name in [name for name in os.environ if name.startswith("FLYWHEEL_")]:
        del os.environ[name]
    os.environ["FLYWHEEL_ENV_FILE"] = os.devnull


@pytest_asyncio.fixture(scope="session")
async def stack(pytestconfig: pytest.Config) -> AsyncIterator[LocalStack]:
    """Kafka, Postgres and S3, on free ports; kept under var/tests when a test failed, else removed."""
    from deploy.local.stack import LocalStack

    # Not pytest's tmp_path: Postgres runs as a user of its own there when we are root.
    var = ROOT / "var" / "tests" / f"run-{os.getpid()}"
    running = LocalStack(var=var, services=False)
    try:
        await running.start(on_progress=lambda line: print(line, flush=True))  # noqa: T201
        yield running
    finally:
        await running.stop()
        if not pytestconfig.stash.get(_failed, False):
            shutil.rmtree(var, ignore_errors=True)


@pytest_asyncio.fixture(scope="module")
async def topics(stack: LocalStack, pytestconfig: pytest.Config) -> None:
    """Flywheel's topics, empty, and no consumer group with offsets on them."""
    if pytestconfig.stash.get(_topics_used, False):
        await empty_topics(stack.env["FLYWHEEL_KAFKA"])
    pytestconfig.stash[_topics_used] = True


@pytest_asyncio.fixture(scope="module")
async def database(stack: LocalStack) -> AsyncIterator[str]:
    """URL of a migrated database without rows."""
    async with fresh_database(stack.env["FLYWHEEL_POSTGRES"]) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def bucket() -> str:
    """Name of a bucket that nobody else uses."""
    return unique("test")


@pytest.fixture(scope="module")
def environment(
    stack: LocalStack, topics: None, database: str, bucket: str, request: pytest.FixtureRequest
) -> dict[str, str]:
    """FLYWHEEL_ settings of this module's world, for child processes."""
    var = Path(stack.env["FLYWHEEL_VAR"]) / request.module.__name__.rpartition(".")[2]
    var.mkdir(parents=True, exist_ok=True)
    return {
        **stack.env,
        "FLYWHEEL_POSTGRES": database,
        "FLYWHEEL_S3_BUCKET": bucket,
        "FLYWHEEL_VAR": str(var),
        "FLYWHEEL_ENV_FILE": os.devnull,
    }


@pytest.fixture(scope="module")
def connections(environment: dict[str, str]) -> Connections:
    """The same world as a settings object."""
    names = ("kafka", "postgres", "s3", "s3_access_key", "s3_bucket", "s3_region")
    values: dict[str, Any] = {
        name: environment[key] for name in names if (key := f"FLYWHEEL_{name.upper()}") in environment
    }
    return Connections(**values, s3_secret_key=SecretStr(environment["FLYWHEEL_S3_SECRET_KEY"]))


@pytest.fixture(scope="module")
def object_store(connections: Connections) -> S3ObjectStore:
    """The stack's object store with this module's bucket, empty."""
    from flywheel.storage.s3 import S3ObjectStore

    store = S3ObjectStore.from_settings(connections)
    store.ensure_bucket()
    return store


@pytest.fixture
def fresh_topic(stack: LocalStack) -> Callable[..., Awaitable[Topic]]:
    """Make a topic with a name of its own: ``await fresh_topic("name", partitions=3)``."""

    async def make(name: str = "test", partitions: int = 1) -> Topic:
        return await make_topic(stack.env["FLYWHEEL_KAFKA"], name, partitions)

    return make


@pytest_asyncio.fixture(scope="module")
async def service_process(environment: dict[str, str]) -> AsyncIterator[ServiceProcesses]:
    """Start real services: ``async with service_process("recorder", FLYWHEEL_RECORDER_IDLE_CLOSE_S="2") as recorder:``.

    Or ``recorder = await service_process("recorder").start()``; what still runs is stopped when the module ends.
    """
    processes = ServiceProcesses(environment, Path(environment["FLYWHEEL_VAR"]))
    yield processes
    await processes.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the services' logs under a failed test, and remember that there was one."""
    report = yield
    if report.failed:
        item.config.stash[_failed] = True
        processes = getattr(item, "funcargs", {}).get("service_process")
        if isinstance(processes, ServiceProcesses):
            report.sections.extend((f"log of {p.name}", p.tail()) for p in processes.all)
    return report
