"""What changes on a secured Kafka while services and agents run: passwords, certificates, rights, topics."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.k8s import kafka as manifests
from flywheel.sdk import Recorder
from flywheel.stream.admin import ensure_topics
from flywheel.topics import COMMANDS, EVENTS
from tests.support.certificates import Authority
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.secured import SecuredKafka
from tests.support.waiting import eventually
from tests.support.world import rows, unique

pytestmark = [pytest.mark.stack, pytest.mark.slow]

RECORDER, ARCHIVER, AGENTS = "flywheel-recorder", "flywheel-archiver", "flywheel-agents"


async def started(secured: SecuredKafka, service_process: ServiceProcesses, *users: str) -> list[ServiceProcess]:
    processes = [service_process(user.removeprefix("flywheel-"), **secured.login(user)) for user in users]
    await asyncio.gather(*(process.start() for process in processes))
    return processes


async def play(recorder: Recorder, database: str) -> None:
    """Record a trajectory, and wait until it is in the database."""
    name = unique("t")
    with recorder.trajectory("s", trajectory_id=name):
        pass
    sql = "SELECT status FROM trajectories WHERE trajectory_id = $1 AND status = 'completed'"
    await eventually(lambda: rows(database, sql, name))


async def ended(process: ServiceProcess, words: str) -> None:
    assert await eventually(lambda: process.returncode, every=0.5) == 70, process.tail()
    assert words in process.log.read_text()


async def test_new_passwords_and_a_new_authority_are_taken_up_without_a_restart(
    secured: SecuredKafka, service_process: ServiceProcesses, database: str
) -> None:
    processes = await started(secured, service_process, RECORDER, ARCHIVER)
    async with Recorder("agent", secured.cluster(AGENTS)) as recorder:
        await play(recorder, database)
        for user in (RECORDER, ARCHIVER, AGENTS):
            await secured.change_password(user, "a new one")
            secured.write_password(user, "a new one")
        new = Authority("new")
        secured.renew(new)
        new.write(secured.ca)
        await secured.halt()  # who is in stays in: only a new connection shows what it is let in with
        await secured.resume()
        await play(recorder, database)
        assert recorder.stats.dropped == {} and recorder.stats.last_error is None
    for process in processes:
        await process.wait_ready()
        assert await process.stop() == 0


async def test_services_whose_password_is_no_more_end_when_they_have_to_come_in_again(
    secured: SecuredKafka, service_process: ServiceProcesses
) -> None:
    processes = await started(secured, service_process, RECORDER, ARCHIVER)
    for user in (RECORDER, ARCHIVER):
        await secured.change_password(user, "another one")
    assert all(process.is_ready() for process in processes)
    await secured.halt()
    await secured.resume()
    for process in processes:
        await ended(process, f"refuses flywheel-{process.name}")
    for user in (RECORDER, ARCHIVER):
        secured.write_password(user, "another one")


async def test_a_right_that_is_taken_away_ends_who_needs_it(
    secured: SecuredKafka, service_process: ServiceProcesses
) -> None:
    (recorder,) = await started(secured, service_process, RECORDER)
    await secured.forbid(RECORDER, EVENTS.name, "Read")
    try:
        await ended(recorder, "our Kafka user has no right to that")
    finally:
        await secured.allow(manifests.users())


async def test_a_topic_that_a_service_may_not_create_is_waited_for(
    secured: SecuredKafka, service_process: ServiceProcesses
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=secured.admin)
    await admin.start()
    await admin.delete_topics([COMMANDS.name])
    await eventually(lambda: _gone(admin))
    await admin.close()
    process = await service_process("recorder", **secured.login(RECORDER)).start(ready=False)

    def problem() -> str:
        return json.loads(process.get("/readyz")[1] or "{}").get("problems", {}).get("kafka", "")

    await eventually(lambda: f"no topic {COMMANDS.name}" in problem() and "may not create it" in problem())
    await ensure_topics(secured.admin)
    await process.wait_ready()


async def _gone(admin: AIOKafkaAdminClient) -> bool:
    return COMMANDS.name not in await admin.list_topics()
