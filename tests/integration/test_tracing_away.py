"""A collector that is away, or worse, costs spans and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from flywheel.errors import EXIT_FATAL
from flywheel.events import dump
from flywheel.settings import Connections
from flywheel.stream.producer import Producer
from flywheel.topics import EVENTS
from tests.support.collector import Collector, Mode, hangs
from tests.support.processes import ServiceProcess, ServiceProcesses
from tests.support.recording import trajectory
from tests.support.waiting import eventually
from tests.support.world import rows, unique

pytestmark = pytest.mark.stack

#: A small queue, and little patience, so that both show soon.
SETTINGS = {
    "FLYWHEEL_OTEL": "on", "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
    "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def producer(connections: Connections) -> AsyncIterator[Producer]:
    producer = Producer(connections.kafka)
    await producer.start()
    yield producer
    await producer.stop()


def spans(service: ServiceProcess) -> dict[str, float]:
    """Return what became of its spans."""
    shown = [line for line in service.get("/metrics")[1].splitlines() if line.startswith("flywheel_trace_spans_total{")]
    return {line.partition('outcome="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in shown}


async def play(producer: Producer, connections: Connections, number: int = 60) -> None:
    """Publish traced trajectories, and wait until each is closed."""
    names = [unique("t") for _ in range(number)]
    for count, name in enumerate(names, 1):
        headers = {"traceparent": f"00-{count:032x}-{'b' * 16}-01"}
        for event in trajectory(name):
            await producer.send(EVENTS.name, name, dump(event), headers)
    await producer.flush()
    sql = "SELECT count(*) FROM trajectories WHERE trajectory_id = ANY($1) AND revision > 0"

    async def closed() -> bool:
        return (await rows(connections.postgres, sql, names))[0]["count"] == number

    await eventually(closed)


@pytest.mark.parametrize("mode", [hangs, 503, 400, None], ids=["hangs", "unavailable", "refuses", "away"])
async def test_it_costs_spans_and_nothing_else(
    service_process: ServiceProcesses, producer: Producer, connections: Connections, mode: Mode | None
) -> None:
    async with Collector(mode=200 if mode is None else mode) as collector:
        url = collector.url
        if mode is None:
            url = url.rpartition(":")[0] + ":1"
        recorder = service_process("recorder", **SETTINGS, OTEL_EXPORTER_OTLP_ENDPOINT=url)
        await recorder.start()
        await play(producer, connections)
        await eventually(lambda: spans(recorder).get("failed"))
        became = spans(recorder)
        assert became.get("dropped", 0) > 0 and "exported" not in became
        assert recorder.is_ready()
        assert await recorder.stop() == 0


async def test_what_is_traced_once_it_is_back_arrives(
    service_process: ServiceProcesses, producer: Producer, connections: Connections
) -> None:
    async with Collector(mode=503) as collector:
        recorder = service_process("recorder", **SETTINGS, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        await recorder.start()
        await play(producer, connections, 5)
        await eventually(lambda: spans(recorder).get("failed"))
        collector.mode = 200
        await play(producer, connections, 5)
        await eventually(lambda: collector.named("process flywheel.events"))
        assert await recorder.stop() == 0


async def test_a_variable_that_makes_no_sense_stops_a_service_at_its_start(service_process: ServiceProcesses) -> None:
    recorder = service_process("recorder", FLYWHEEL_OTEL="on", OTEL_SPAN_LINK_COUNT_LIMIT="many")
    await recorder.start(ready=False)
    await eventually(lambda: recorder.returncode is not None)
    assert recorder.returncode == EXIT_FATAL
    assert "OTEL_SPAN_LINK_COUNT_LIMIT" in recorder.tail()


async def test_off_nothing_is_sent_whatever_the_other_variables_say(
    service_process: ServiceProcesses, producer: Producer, connections: Connections
) -> None:
    about: dict[str, Any] = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
    async with Collector() as collector:
        recorder = service_process("recorder", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **about)
        gateway = service_process("gateway", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **about)
        await asyncio.gather(recorder.start(), gateway.start())
        await play(producer, connections, 3)
        assert gateway.get("/api/v1/jobs")[0] == 200
        assert await gateway.stop() == await recorder.stop() == 0
        assert collector.requests == 0
    kept = await rows(connections.postgres, "SELECT count(*) FROM trajectories WHERE trace_context IS NULL")
    assert kept[0]["count"] == 3
