"""The loop, each part of it from its image as compose.yaml runs it: healthy, confined, once around, and stopped."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from deploy.local.parts import SERVICES
from tests.images.conftest import Make
from tests.images.containers import Container
from tests.support.waiting import eventually
from tests.support.world import rows, unique, with_database

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(1800)]

#: A round of the one desk is a batch.
GROUPS, GROUP_SIZE = 8, 4
SMALL = {
    "FLYWHEEL_ARCHIVER_MIN_TRAJECTORIES": str(GROUPS * GROUP_SIZE),
    "FLYWHEEL_ARCHIVER_MIN_GROUPS": str(GROUPS),
    "FLYWHEEL_ARCHIVER_GROUP_SETTLE_S": "5",
}

#: What a service is allowed, as it sees it itself.
LOOK = """
import errno, json, os
def write(folder):
    try:
        with open(os.path.join(folder, "a-file"), "w"):
            return "written"
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(":", 1) for line in open("/proc/1/status") if ":" in line)
print(json.dumps({
    "uid": os.stat("/proc/1").st_uid, "command": open("/proc/1/cmdline").read().split(chr(0))[:3],
    "capabilities": [status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "writes": {f: write(f) for f in "/ /app /opt/flywheel /usr /etc /var /tmp /var/lib/flywheel".split()},
}))
"""


@pytest_asyncio.fixture(scope="module")
async def services(container: Make) -> AsyncIterator[dict[str, Container]]:
    """The five services, healthy."""
    made = {name: container(name, **SMALL).start() for name in SERVICES}
    for each in made.values():
        await each.until_healthy()
    yield made


@pytest.fixture
def ledger(environment: dict[str, str]) -> Path:
    """A folder that the agent may write to, for what the broker acknowledged to it."""
    folder = Path(environment["FLYWHEEL_VAR"]) / "ledger"
    folder.mkdir()
    os.chown(folder, 10001, 10001)
    return folder


async def test_the_migrations_run_and_end(container: Make, database: str) -> None:
    name = unique("empty").replace("-", "_")
    admin = await asyncpg.connect(with_database(database, "postgres"))
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        migrate = container("migrate", FLYWHEEL_POSTGRES=with_database(database, name))
        assert await migrate.start().end() == 0, migrate.tail()
        assert "applied 0001_recorder.sql" in migrate.tail()
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


@pytest.mark.parametrize("name", SERVICES)
async def test_a_service_can_write_its_folder_and_tmp_and_do_nothing_else(
    services: dict[str, Container], name: str
) -> None:
    done = await services[name].exec("python", "-c", LOOK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] == 10001
    assert found["command"] == ["python", "-m", f"services.{name}"]
    assert found["capabilities"] == ["0" * 16] * 3
    assert (found["no_new_privileges"], found["seccomp"]) == ("1", "2")
    writable = {"/tmp": "written", "/var/lib/flywheel": "written"}
    assert found["writes"] == dict.fromkeys(found["writes"], "EROFS") | writable


async def test_a_health_check_says_what_is_wrong(container: Make, services: dict[str, Container]) -> None:
    for each in services.values():
        assert (await each.check()).returncode == 0
    lost = container("gateway", FLYWHEEL_POSTGRES="postgresql://nobody@127.0.0.1:1/nothing").start()
    found = await eventually(lambda: answered(lost))
    assert found.returncode == 1 and "503" in found.stdout and "postgres" in found.stdout
    assert await lost.stop() == 0, lost.tail()


async def answered(container: Container) -> Any:
    found = await container.check()
    return found if "503" in found.stdout else None


async def test_a_recorder_that_is_stopped_under_load_loses_nothing(
    container: Make, services: dict[str, Container], database: str
) -> None:
    load = container("cli")
    load.service["command"] = [
        "generate", "--trajectories", "1500", "--split", "held_out", "--channel", "load", "--rate", "1500", "--wait",
    ]  # fmt: skip
    load.start()
    await eventually(lambda: more_events_than(database, 2_000))
    assert await services["recorder"].stop() == 0, services["recorder"].tail()
    assert load.returncode is None, "it was over before the recorder was stopped"
    await services["recorder"].start().until_healthy()
    assert await load.end() == 0, load.tail()  # it has compared what it sent with what is stored


async def more_events_than(database: str, number: int) -> bool:
    return (await rows(database, "SELECT count(*) AS events FROM events"))[0]["events"] > number


async def test_the_loop_turns_and_every_service_survives_being_stopped(
    container: Make, services: dict[str, Container], database: str, ledger: Path
) -> None:
    address = f"http://127.0.0.1:{services['gateway'].service['environment']['FLYWHEEL_GATEWAY_PORT']}"
    base = container("base-model")
    base.service["command"][-1] = base.service["command"][-1].replace("http://gateway:8080", address)
    assert await base.start().end() == 0, base.tail()

    play = ("--groups", str(GROUPS), "--group-size", str(GROUP_SIZE), "--ledger", "/ledger/desk.txt")
    desk = container("desk-1", play).start(extra=(f"--volume={ledger}:/ledger",))
    judge = container("judge").start()

    learned = await eventually(lambda: deployed(database), within=600)
    assert (learned["origin"], learned["parent_version"], learned["status"]) == ("trained", "1.0.0", "completed")
    said = "SELECT agent_id FROM acks WHERE version = $1 AND status = 'loaded'"
    await eventually(lambda: everybody(database, said, learned["version"]), within=300)

    # In the middle of play: what was asked to stop stops by itself, and what comes after it goes on.
    for name in SERVICES:
        assert await services[name].stop() == 0, services[name].tail()
        await services[name].start().until_healthy()

    assert await desk.stop() == 0, desk.tail()
    assert await judge.stop() == 0, judge.tail()
    sent = (ledger / "desk.txt").read_text().split()
    assert len(sent) == len(set(sent)) > GROUPS * GROUP_SIZE
    stored = "SELECT count(*) AS events FROM events WHERE event_id = ANY($1::uuid[])"

    async def all_stored() -> bool:
        return (await rows(database, stored, sent))[0]["events"] == len(sent)

    await eventually(all_stored)
    for each in services.values():
        assert await each.stop() == 0, each.tail()


async def deployed(database: str) -> Any:
    found = await rows(
        database,
        "SELECT models.version, models.parent_version, models.origin, training_jobs.status FROM models"
        " JOIN training_jobs USING (batch_id) WHERE models.origin = 'trained' ORDER BY models.number LIMIT 1",
    )
    return found[0] if found else None


async def everybody(database: str, said: str, version: str) -> bool:
    return {row["agent_id"] for row in await rows(database, said, version)} >= {"desk-1", "judge"}
