"""What several modules of integration tests want beside the stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
import pytest_asyncio

from flywheel.storage import postgres
from tests.support.command import Command
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.secured import SecuredKafka
from tests.support.world import unique

if TYPE_CHECKING:
    from deploy.local.stack import LocalStack


@pytest_asyncio.fixture(scope="module")
async def gateway(service_process: ServiceProcesses) -> AsyncIterator[ServiceProcess]:
    process = service_process("gateway")
    await process.start()
    yield process


@pytest_asyncio.fixture(scope="module")
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await postgres.connect(database)
    yield pool
    await pool.close()


@pytest.fixture
def name() -> str:
    return unique("g")


@pytest_asyncio.fixture(scope="module")
async def secured(stack: LocalStack) -> AsyncIterator[SecuredKafka]:
    """A Kafka with TLS, users and ACLs, beside the stack's own."""
    kafka = SecuredKafka(Path(stack.env["FLYWHEEL_VAR"]) / unique("secured"))
    try:
        await kafka.start()
        yield kafka
    finally:
        await kafka.stop()


@pytest.fixture(scope="module")
def command(environment: dict[str, str]) -> Command:
    """The ``flywheel`` command in this module's world."""
    return Command(environment)
