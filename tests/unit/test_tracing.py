"""What services trace, how contexts travel through messages, and what is sampled."""

from __future__ import annotations

import asyncio
import json

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from flywheel import traceparent, tracing
from flywheel.stream.record import Record
from flywheel.topics import BATCHES, TRAJECTORIES
from flywheel.tracing import messaging
from flywheel.weighted import WeightedHistogram
from tests.support.tracing import text, traced

CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"
OTHER = f"00-{'c' * 32}-{'d' * 16}-01"


def record(*headers: tuple[str, bytes | None], offset: int = 7) -> Record:
    return Record("flywheel.batches", 2, offset, b"key", b"{}", headers, 0)


def carrying(context: str, offset: int = 7) -> Record:
    return record((traceparent.HEADER, context.encode()), offset=offset)


def test_off_nothing_is_traced_looked_at_or_sent() -> None:
    def unread() -> object:
        raise AssertionError("nobody may look at the records")
        yield

    with messaging.consuming("t", "g", unread(), 2) as span:  # pyright: ignore[reportArgumentType]
        tracing.say({"x": 1})
        tracing.event("x")
        tracing.failed("x")
        assert not span.is_recording()
        assert messaging.create(BATCHES, "k", CONTEXT) == {}
    assert messaging.context_of(carrying(CONTEXT)) is None
    assert tracing.current() is None and tracing.ids() == {} and tracing.exemplar() is None
    assert not tracing.on()


def test_one_message_is_processed_within_its_trace_and_what_comes_of_it_too() -> None:
    with traced() as spans:
        with messaging.consuming("flywheel.batches", "group", [carrying(CONTEXT)], 1):
            headers = messaging.create(TRAJECTORIES, "k")
        created, processed = spans.all()
    assert (processed.name, processed.kind) == ("process flywheel.batches", SpanKind.CONSUMER)
    assert text(processed)[3:35] == CONTEXT[3:35] and processed.parent is not None
    assert processed.parent.span_id == int("b" * 16, 16) and processed.parent.is_remote
    assert dict(processed.attributes or {}) == {
        "messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": "flywheel.batches", "messaging.consumer.group.name": "group",
        "messaging.destination.partition.id": "2", "messaging.kafka.offset": 7, "messaging.kafka.message.key": "key",
    }  # fmt: skip
    assert (created.name, created.kind) == ("create flywheel.trajectories", SpanKind.PRODUCER)
    assert created.parent == processed.context and headers == {"traceparent": text(created)}


def test_several_messages_are_processed_in_a_trace_of_its_own_that_links_to_each_of_theirs_once() -> None:
    again = CONTEXT.replace("b", "e")
    records = [carrying(CONTEXT, 1), record(offset=2), carrying(again, 3), carrying(OTHER, 4)]
    with traced() as spans, messaging.consuming("t", "g", records, len(records)):
        pass
    (processed,) = spans.all()
    assert processed.parent is None
    assert [(f"{link.context.trace_id:032x}", (link.attributes or {})["messaging.kafka.offset"])
            for link in processed.links] == [("a" * 32, 1), ("c" * 32, 4)]  # fmt: skip
    assert (processed.attributes or {})["messaging.batch.message_count"] == 4


def test_links_are_bounded() -> None:
    records = [carrying(f"00-{n:032x}-{'b' * 16}-01", n) for n in range(1, 3000)]
    with traced(most_links=10) as spans, messaging.consuming("t", "g", records, len(records)):
        pass
    assert len(spans.one("process t").links) == 10


def test_what_links_to_something_sampled_is_sampled_and_of_the_rest_a_share() -> None:
    with traced(share=0.0) as spans:
        with messaging.consuming("plain", "g", [record(), record()], 2):
            assert tracing.current() is None
            assert messaging.create(BATCHES, "k") == {}
        with messaging.consuming("linked", "g", [record(), carrying(CONTEXT)], 2):
            assert tracing.current()
    assert spans.names() == ["process linked"]


def test_an_error_is_named_by_its_class_and_its_words_stay_here() -> None:
    with traced() as spans, pytest.raises(KeyError), tracing.span("work"):
        raise KeyError("a row that nobody may see")
    (work,) = spans.all()
    assert work.status.status_code is StatusCode.ERROR
    assert dict(work.attributes or {}) == {"error.type": "KeyError"}
    assert "nobody may see" not in work.to_json()


async def test_marks_are_put_into_many_traces_while_others_get_their_turn() -> None:
    contexts = [f"00-{n:032x}-{'b' * 16}-01" for n in range(1, 251)]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    with traced() as spans:
        await tracing.mark_all("join", contexts, links=[(OTHER, {})], attributes={"id": "b"})
    task.cancel()
    assert turns >= 2
    assert [text(mark)[3:35] for mark in spans.all()] == [context[3:35] for context in contexts]
    assert all(len(mark.links) == 1 for mark in spans.all())


def test_a_log_line_says_in_which_trace_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from flywheel import log

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        log.configure("test")
        with traced() as spans, tracing.span("work"):
            log.get_logger("x").info("within")
        log.get_logger("x").info("outside")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    within, outside = map(json.loads, capsys.readouterr().out.splitlines())
    assert f"00-{within['trace_id']}-{within['span_id']}" == text(spans.one("work"))[:-3]
    assert "trace_id" not in outside


def test_a_weighted_histogram_shows_the_last_exemplar_of_each_bucket() -> None:
    registry = CollectorRegistry()
    histogram = WeightedHistogram("h_seconds", "h", buckets=(1, 2), registry=registry)
    histogram.observe(0.5, 3, {"trace_id": "first"})
    histogram.observe(0.7, 2, {"trace_id": "second"})
    histogram.observe(0.1)
    histogram.observe(5, 1, {"trace_id": "third"})
    shown = generate_latest(registry).decode()
    assert 'h_seconds_bucket{le="1.0"} 6.0 # {trace_id="second"} 0.7' in shown
    assert 'h_seconds_bucket{le="2.0"} 6.0\n' in shown
    assert 'h_seconds_bucket{le="+Inf"} 7.0 # {trace_id="third"} 5' in shown
