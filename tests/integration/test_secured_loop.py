"""The whole loop on a Kafka as in production: each part with the user, and the rights, that the manifests give it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flywheel.sdk import ModelSubscriber, Recorder
from flywheel.sdk.sync import Recorder as SyncRecorder
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.follow import follow
from flywheel.stream.offsets import read_offsets
from flywheel.stream.producer import Producer
from flywheel.topics import ACKS, ALL_TOPICS, BATCHES, EVENTS, MODELS, OUTCOMES, TRAJECTORIES
from tests.support.command import Command
from tests.support.processes import ROOT, ServiceProcess, ServiceProcesses
from tests.support.secured import SecuredKafka
from tests.support.training import IMPORTS_WITHIN_S, as_calls
from tests.support.waiting import eventually
from tests.support.world import rows, unique

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    "recorder": {},
    "archiver": {
        "FLYWHEEL_ARCHIVER_MIN_TRAJECTORIES": "16",
        "FLYWHEEL_ARCHIVER_MIN_GROUPS": "4",
        "FLYWHEEL_ARCHIVER_CHECK_INTERVAL_S": "0.2",
    },
    "trainer": {"FLYWHEEL_TRAINER_LEARNING_RATE": "0.001", "FLYWHEEL_TRAINER_THREADS": "1"},
    "deployer": {},
    "gateway": {},
}

Services = dict[str, ServiceProcess]


@pytest_asyncio.fixture(scope="module")
async def services(
    secured: SecuredKafka, service_process: ServiceProcesses, object_store: S3ObjectStore
) -> AsyncIterator[Services]:
    """The five services, each with its own user."""
    processes = {
        name: service_process(name, **settings, **secured.login(f"flywheel-{name}"))
        for name, settings in SETTINGS.items()
    }
    await asyncio.gather(*(process.start(ready=False) for process in processes.values()))
    await asyncio.gather(*(process.wait_ready(within=IMPORTS_WITHIN_S) for process in processes.values()))
    yield processes


@pytest.fixture
def agent(environment: dict[str, str], secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has the settings of an agent."""
    for name, value in {**environment, **secured.login("flywheel-agents")}.items():
        monkeypatch.setenv(name, value)
    yield


@pytest_asyncio.fixture(scope="module")
async def admin(secured: SecuredKafka) -> AsyncIterator[Producer]:
    producer = Producer(secured.admin)
    await producer.start()
    yield producer
    await producer.stop()


def play(recorder: Recorder, model: Any, version: str) -> None:
    """Four groups of four attempts by the model, as an agent records them."""
    from tests.training.builders import recorded_rows

    names = [unique("g") for _ in range(4)]
    for number, row in enumerate(recorded_rows(model, (4, 4, 4, 4))):
        with recorder.trajectory(
            "s", group_id=names[number // 4], group_size=4, model_version=version
        ) as trajectory:  # fmt: skip
            for prompt, completion, logprobs in as_calls(row):
                with trajectory.step() as step:
                    step.log_llm_call(
                        model="tiny", sampling={"temperature": 1.0}, prompt_token_ids=prompt,
                        completion_token_ids=completion, completion_logprobs=logprobs,
                    )  # fmt: skip
                    step.complete(action="say", reward=number % 3 / 10)


def librdkafka() -> Path:
    """A librdkafka that can log in to Kafka 4 (github.com/confluentinc/librdkafka/pull/4895), for a kcat that may be
    built on an older one.
    """
    import confluent_kafka

    (found,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*.so*")
    return found


async def dead(secured: SecuredKafka, topic: str) -> int:
    return (await read_offsets(secured.admin, [topic])).kept(topic) or 0


async def test_an_agents_play_becomes_the_model_that_it_plays_next(
    services: Services, secured: SecuredKafka, command: Command, agent: None, tmp_path: Path
) -> None:
    from tests.training.builders import save, tiny_model

    model = tiny_model()
    folder = await asyncio.to_thread(save, model, tmp_path / "base")
    done = await command("model", "import", str(folder), "--wait", **secured.login("flywheel-operator"))
    assert done.status == 0 and "runs version 1.0.0" in done.out, done.err

    subscriber = ModelSubscriber.from_env("agent-1", lambda path: path.name, cache=tmp_path / "cache")
    async with Recorder.from_env("agent-1") as recorder, subscriber:
        assert (await subscriber.wait_for_model(60)).version == "1.0.0"
        await asyncio.to_thread(play, recorder, model, "1.0.0")
        assert await recorder.flush(60) and recorder.stats.acked == recorder.stats.logged
        assert await subscriber.wait_for_newer("1.0.0", 240), services["trainer"].tail()
        assert subscriber.tick() and subscriber.current is not None and subscriber.current.version == "1.1.0"

    async def running() -> bool:
        async with aclosing(follow(secured.cluster("flywheel-deployer"), ACKS.name, from_beginning=True)) as acks:
            async for ack in acks:
                if json.loads(ack.value or b"{}")["running_version"] == "1.1.0":
                    return True
        return False

    async with asyncio.timeout(60):
        assert await running()


async def test_an_agent_without_a_loop_comes_in_as_well(services: Services, agent: None, database: str) -> None:
    name = unique("t")
    with SyncRecorder.from_env("agent-2") as recorder, recorder.trajectory("s", trajectory_id=name) as trajectory:
        trajectory.log_reward(1.0)
    assert recorder.stats.acked == 3
    sql = "SELECT status FROM trajectories WHERE trajectory_id = $1 AND status = 'completed'"
    await eventually(lambda: rows(database, sql, name))


async def test_a_client_in_another_language_comes_in_as_the_page_of_events_says(
    services: Services, secured: SecuredKafka, database: str, tmp_path: Path
) -> None:
    assert shutil.which("kcat"), "kcat is not installed: apt-get install kcat"
    page = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```sh\n([^`]*sasl\.password[^`]*)```", page)
    address = secured.login("flywheel-agents")["FLYWHEEL_KAFKA"]
    for said, here in {
        "kafka.example.org:9093": address, "the-password": secured.password("flywheel-agents"),
    }.items():  # fmt: skip
        assert script.count(said) == 1
        script = script.replace(said, here)
    await asyncio.to_thread(shutil.copy, secured.ca, tmp_path / "ca.crt")
    environ = {**os.environ, "LD_PRELOAD": str(librdkafka())}
    process = await asyncio.create_subprocess_exec("sh", "-e", "-c", script, cwd=tmp_path, env=environ)
    assert await process.wait() == 0
    sql = "SELECT status FROM trajectories WHERE trajectory_id = 'by-hand-2' AND status = 'completed'"
    await eventually(lambda: rows(database, sql))


async def test_each_service_may_bury_what_it_cannot_process(
    services: Services, secured: SecuredKafka, admin: Producer
) -> None:
    for topic in (EVENTS, OUTCOMES, TRAJECTORIES, BATCHES, MODELS, ACKS):
        before = await dead(secured, topic.dead)
        await admin.send_and_wait(topic.name, "garbage", b"garbage")
        await eventually(lambda topic=topic, before=before: _grew(secured, topic.dead, before), every=0.5)
    assert [name for name, process in services.items() if process.returncode is not None] == []


async def _grew(secured: SecuredKafka, topic: str, before: int) -> bool:
    return await dead(secured, topic) > before


async def test_the_operator_sees_dead_letters_and_puts_them_back(
    services: Services, secured: SecuredKafka, admin: Producer, command: Command
) -> None:
    await admin.send_and_wait(EVENTS.name, "again", b"put me back")
    login = secured.login("flywheel-operator")

    async def listed() -> list[Any]:
        done = await command("dead", "list", "--topic", EVENTS.name, "--json", **login)
        assert done.status == 0, done.err
        return [letter for letter in json.loads(done.out)["dead_letters"] if letter["key"] == "again"]

    (letter,) = await eventually(listed, every=1)
    shown = await command("dead", "show", letter["id"], **login)
    assert shown.status == 0 and "put me back" in shown.out
    replayed = await command("dead", "replay", letter["id"], "--yes", **login)
    assert replayed.status == 0, replayed.err
    await eventually(lambda: _buried_again(listed), every=1)


async def _buried_again(listed: Any) -> bool:
    return len(await listed()) == 2


async def test_the_gateway_counts_dead_letters_and_the_lag_of_every_group(
    services: Services, secured: SecuredKafka, admin: Producer
) -> None:
    await admin.send_and_wait(EVENTS.name, "garbage", b"garbage")

    def known() -> bool:
        summary = json.loads(services["gateway"].get("/api/v1/summary")[1])
        groups = {line.partition(" ")[0] for line in summary["lag"] or ()}
        wanted = {f"flywheel-{name}" for name in ("recorder", "archiver", "trainer", "deployer")}
        return wanted <= groups and (summary["dead_letters"] or {}).get(EVENTS.dead, 0) > 0

    await eventually(lambda: asyncio.to_thread(known), every=0.5)


def test_no_password_is_in_a_log(services: Services, secured: SecuredKafka) -> None:
    for name, process in services.items():
        text = process.log.read_text()
        assert text and secured.password(f"flywheel-{name}") not in text


async def test_services_stop_cleanly_and_start_with_topics_they_could_not_make(
    services: Services, secured: SecuredKafka
) -> None:
    assert await services["archiver"].stop() == 0
    await services["archiver"].start()
    seen = await read_offsets(secured.cluster("flywheel-archiver"), [topic.name for topic in ALL_TOPICS])
    assert {topic for topic, _ in seen.end} == {topic.name for topic in ALL_TOPICS}
