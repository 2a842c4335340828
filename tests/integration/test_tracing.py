"""One trace from an agent's step to the model it led to: all services and an agent as processes, and a real collector's
protocol.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from flywheel import artifacts
from flywheel.events import dump
from flywheel.messages import ModelTrained
from flywheel.settings import Connections
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS, MODELS
from tests.support.collector import Collector, Told
from tests.support.processes import ROOT, ServiceProcess, ServiceProcesses, service_environment
from tests.support.recording import trajectory
from tests.support.traced_agent import SIZES
from tests.support.training import IMPORTS_WITHIN_S
from tests.support.waiting import eventually
from tests.support.world import rows, unique

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    "FLYWHEEL_TRAINER_THREADS": "1", "FLYWHEEL_TRAINER_POLL_S": "0.1",
    "FLYWHEEL_ARCHIVER_MIN_TRAJECTORIES": str(sum(SIZES)), "FLYWHEEL_ARCHIVER_MIN_GROUPS": str(len(SIZES)),
}  # fmt: skip
PRODUCER, CONSUMER = 4, 5  # OTLP's numbers


@dataclass(frozen=True)
class Loop:
    """One turn of the loop, over, and what the collector heard of it."""

    collector: Collector
    services: dict[str, ServiceProcess]
    chat: Told


@pytest_asyncio.fixture(scope="module")
async def loop(
    service_process: ServiceProcesses, object_store: S3ObjectStore, connections: Connections,
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Loop]:  # fmt: skip
    async with Collector() as collector:
        traced = {
            "FLYWHEEL_OTEL": "on", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200",
        }  # fmt: skip
        names = ("recorder", "archiver", "trainer", "deployer", "gateway")
        services = {name: service_process(name, **SETTINGS, **traced) for name in names}
        await asyncio.gather(*(service.start(ready=False) for service in services.values()))
        await asyncio.gather(*(service.wait_ready(IMPORTS_WITHIN_S) for service in services.values()))
        await import_base(connections, object_store, tmp_path_factory.mktemp("base"))
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.traced_agent", "agent-1", cwd=ROOT,
            env=service_environment({**environment, **traced}),
        )  # fmt: skip
        assert await agent.wait() == 0
        await eventually(lambda: collector.named("acknowledge", flywheel__model__version="1.1.0"))
        await eventually(lambda: len(collector.named("led to model")) == sum(SIZES))
        await eventually(lambda: collector.named("invoke_agent"))
        yield Loop(collector, services, collector.named("chat tiny")[-1])


async def import_base(connections: Connections, store: S3ObjectStore, folder: Path) -> None:
    """Announce the tiny model, as ``flywheel model import`` does."""
    from tests.training.builders import save, tiny_model

    await asyncio.to_thread(save, tiny_model(), folder)
    artifact = await asyncio.to_thread(artifacts.upload, store, folder, unique("model"), {"origin": "imported"})
    model = ModelTrained(model_id=artifact.model_id, artifact=artifact, origin="imported", base_model="tiny")
    producer = Producer(connections.kafka)
    await producer.start()
    await producer.send_and_wait(MODELS.name, model.model_id, model.dump())
    await producer.stop()


def line(collector: Collector, of: Told) -> list[tuple[str, str]]:
    """Return where a span comes from, as (service, name), beginning with the first."""
    return [(told.service.removeprefix("flywheel-"), told.name) for told in reversed(collector.ancestry(of))]


def only(found: list[Told]) -> Told:
    (one,) = found
    return one


async def test_one_trace_leads_from_an_agents_step_to_the_model_it_led_to(loop: Loop, connections: Connections) -> None:
    collector, chat = loop.collector, loop.chat
    assert line(collector, chat) == [("agent", "invoke_agent"), ("agent", "step"), ("agent", "chat tiny")]
    begun = collector.ancestry(chat)[-1]
    (job,) = await rows(connections.postgres, "SELECT * FROM training_jobs")
    trajectory_id = begun.attributes["flywheel.trajectory.id"]

    played = collector.trace(chat.trace)
    recorded = only([told for told in played if told.name == "create flywheel.trajectories"])
    joined = only([told for told in played if told.name == "join batch"])
    learned = only([told for told in played if told.name == "led to model"])
    assert {told.parent for told in (recorded, joined, learned)} == {begun.span}
    assert (recorded.service, recorded.kind) == ("flywheel-recorder", PRODUCER)
    assert recorded.attributes["messaging.kafka.message.key"] == trajectory_id
    assert joined.attributes["flywheel.batch.id"] == learned.attributes["flywheel.batch.id"] == job["batch_id"]
    assert learned.attributes["flywheel.job.id"] == job["job_id"]
    assert learned.attributes["flywheel.model.id"] == job["model_id"]
    assert learned.attributes["flywheel.model.version"] == "1.1.0"

    stored = {told.span: told for told in collector.named("process flywheel.events")}
    (via,) = recorded.links
    assert stored[via[1]].kind == CONSUMER
    assert chat.trace in {trace for trace, _, _ in stored[via[1]].links}


async def test_the_trace_of_a_batch_is_joined_with_those_of_its_members_both_ways(loop: Loop) -> None:
    collector = loop.collector
    batch = only(collector.named("batch"))
    begun = {told.attributes["flywheel.trajectory.id"]: told for told in collector.named("invoke_agent")}
    assert len(begun) == sum(SIZES)
    linked = {said["flywheel.trajectory.id"]: (trace, span) for trace, span, said in batch.links}
    assert linked == {name: (told.trace, told.span) for name, told in begun.items()}
    for told in begun.values():
        joined, learned = (
            only([mark for mark in collector.trace(told.trace) if mark.name == name])
            for name in ("join batch", "led to model")
        )
        assert [link[:2] for link in joined.links] == [(batch.trace, batch.span)]
        assert [trace for trace, _, _ in learned.links] == [batch.trace]


async def test_the_trace_of_a_batch_goes_on_to_the_agent_that_runs_its_model(loop: Loop) -> None:
    collector = loop.collector
    said = only(collector.named("acknowledge", flywheel__model__version="1.1.0"))
    assert said.attributes["flywheel.agent.id"] == "agent-1" and said.attributes["flywheel.ack.status"] == "loaded"
    assert line(collector, said) == [
        ("archiver", "batch"),
        ("archiver", "create flywheel.batches"),
        ("trainer", "train"),
        ("trainer", "create flywheel.models"),
        ("deployer", "process flywheel.models"),
        ("deployer", "create flywheel.model-updates"),
        ("agent", "load model"),
        ("deployer", "acknowledge"),
    ]
    trained = only(collector.named("train"))
    stages = [told.name for told in collector.trace(trained.trace) if told.parent == trained.span]
    assert stages == ["preparing", "training", "uploading", "create flywheel.models"]
    assert not any(told.error for told in collector.spans)


async def test_the_gateway_names_the_trace_of_each_thing_and_of_each_answer(loop: Loop) -> None:
    gateway, batch = loop.services["gateway"], only(loop.collector.named("batch"))

    def asked(path: str) -> Any:
        status, body = gateway.get(path)
        assert status == 200
        return json.loads(body)

    model = asked("/api/v1/models/1.1.0")
    assert model["trace_id"] == model["lineage"]["batch"]["trace_id"] == model["lineage"]["job"]["trace_id"]
    assert model["trace_id"] == batch.trace
    members = {member["trajectory_id"]: member["trace_id"] for member in model["lineage"]["trajectories"]}
    begun = loop.collector.named("invoke_agent")
    assert members == {told.attributes["flywheel.trajectory.id"]: told.trace for told in begun}
    listed = asked("/api/v1/trajectories")["items"]
    assert {one["trajectory_id"]: one["trace_id"] for one in listed} == members

    named = (await asyncio.to_thread(urllib.request.urlopen, f"{gateway.address}/api/v1/jobs")).headers["X-Trace-Id"]
    request = only(await eventually(lambda: [told for told in loop.collector.spans if told.trace == named]))
    assert (request.name, request.attributes["http.response.status_code"]) == ("GET /api/v1/jobs", 200)


async def test_metrics_lead_to_traces_and_logs_say_theirs(loop: Loop) -> None:
    known = {told.trace for told in loop.collector.spans}
    for service, metric in (
        ("recorder", "flywheel_handle_seconds_bucket"), ("recorder", "flywheel_recorder_durable_seconds_bucket"),
        ("trainer", "flywheel_handle_seconds_bucket"), ("gateway", "flywheel_gateway_request_seconds_bucket"),
    ):  # fmt: skip
        shown = await asyncio.to_thread(open_metrics, loop.services[service])
        traces = re.findall(rf'^{metric}{{.*# {{.*trace_id="([0-9a-f]{{32}})"', shown, re.MULTILINE)
        assert traces and (service == "gateway" or set(traces) <= known), (service, metric)
    logged = [json.loads(text) for text in loop.services["trainer"].log.read_text().splitlines() if text[:1] == "{"]
    done = next(said for said in logged if said["event"] == "job completed")
    assert done["trace_id"] == only(loop.collector.named("train")).trace


def open_metrics(service: ServiceProcess) -> str:
    """Ask for metrics as Prometheus does."""
    request = urllib.request.Request(f"{service.address}/metrics", headers={"Accept": "application/openmetrics-text"})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        return answer.read().decode()


async def test_whatever_a_foreign_producer_writes_into_the_headers_does_no_harm(
    loop: Loop, connections: Connections
) -> None:
    span = "00f067aa0ba902b7"
    odd: list[dict[str, str | bytes | None]] = [
        {"traceparent": value, "tracestate": b"\xff" * 600, "baggage": b"\x00"}
        for value in (
            None, b"", b"\xff\xfe", b"x" * 100_000, f"ff-{'a' * 32}-{span}-01", f"00-{'0' * 32}-{span}-01",
            f"00-{'a' * 32}-{'0' * 16}-01", f"00-{'A' * 32}-{span}-01", f"00-{'a' * 32}-{span}-01-more",
            f"00-{'a' * 32}-{span}-00", "00-１２３４", "traceparent: 00",
        )
    ]  # fmt: skip
    good = f"00-{'c' * 32}-{span}-01"
    producer = Producer(connections.kafka)
    await producer.start()
    names = [unique("odd") for _ in [*odd, good]]
    for name, headers in zip(names, [*odd, {"traceparent": good}], strict=True):
        for event in trajectory(name):
            await producer.send(EVENTS.name, name, dump(event), headers)
    await producer.stop()
    sql = "SELECT trajectory_id, trace_context FROM trajectories WHERE trajectory_id = ANY($1) AND revision > 0"

    async def closed() -> dict[str, str | None] | None:
        found = await rows(connections.postgres, sql, names)
        return {row["trajectory_id"]: row["trace_context"] for row in found} if len(found) == len(names) else None

    stored = await eventually(closed)
    assert stored == {name: good if name == names[-1] else None for name in names}
    assert loop.services["recorder"].is_ready()
    assert "flywheel_dead_letters_total{" not in loop.services["recorder"].get("/metrics")[1]
    await eventually(lambda: [told for told in loop.collector.trace("c" * 32) if told.parent == span])
