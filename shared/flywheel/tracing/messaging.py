"""Spans of messages, by OpenTelemetry's conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/).

A message carries the context of the span that created it. Who processes one message goes on in its trace; who processes
several at once begins a trace that links to theirs, for it cannot be part of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

from flywheel import traceparent, tracing
from flywheel.stream.record import Record
from flywheel.topics import Topic
from flywheel.tracing import Attributes, Linked, Span, SpanKind

_SYSTEM: Attributes = {"messaging.system": "kafka"}
_NONE: Mapping[str, str] = {}


def context_of(record: Record) -> str | None:
    """Return the context that a record came with; None without one, or where it is not sampled or makes no sense."""
    if not record.headers or not tracing.on():
        return None
    for name, value in reversed(record.headers):
        if name == traceparent.HEADER:
            return traceparent.sampled(value)
    return None


def consuming(topic: str, group: str, records: Iterable[Record], count: int) -> AbstractContextManager[Span]:
    """Trace the processing of ``count`` records. They are only looked at while tracing is on."""
    parent, links, attributes = None, (), _SYSTEM
    if tracing.on():
        attributes = {
            **_SYSTEM, "messaging.operation.name": "process", "messaging.operation.type": "process",
            "messaging.destination.name": topic, "messaging.consumer.group.name": group,
        }  # fmt: skip
        if count == 1:
            (record,) = records
            parent = context_of(record)
            attributes |= _place(record)
        else:
            links = _distinct(records)
            attributes["messaging.batch.message_count"] = count
    return tracing.span(f"process {topic}", parent=parent, links=links, kind=SpanKind.CONSUMER, attributes=attributes)


def create(topic: Topic, key: str, parent: str | None = None, links: Iterable[Linked] = ()) -> Mapping[str, str]:
    """Note that a message came to be, within ``parent`` or what is current; return the headers to send with it, none
    where nothing is traced that it could belong to.
    """
    if not tracing.on() or (parent is None and tracing.current() is None):
        return _NONE
    context = tracing.mark(
        f"create {topic.name}", parent=parent, links=links, kind=SpanKind.PRODUCER,
        attributes={
            **_SYSTEM, "messaging.operation.name": "create", "messaging.operation.type": "create",
            "messaging.destination.name": topic.name, "messaging.kafka.message.key": key,
        },
    )  # fmt: skip
    return _NONE if context is None else {traceparent.HEADER: context}


def _distinct(records: Iterable[Record]) -> Iterator[Linked]:
    """Yield the first context of each trace, with the place of its record."""
    seen: set[str] = set()
    for record in records:
        context = context_of(record)
        if context is not None and (trace := traceparent.trace_id(context)) not in seen:
            seen.add(trace)
            yield context, _place(record)


def _place(record: Record) -> dict[str, str | int]:
    place: dict[str, str | int] = {
        "messaging.destination.partition.id": str(record.partition), "messaging.kafka.offset": record.offset,
    }  # fmt: skip
    if record.key is not None:
        place["messaging.kafka.message.key"] = record.key.decode("utf-8", "replace")[:200]
    return place
