"""OpenTelemetry for the services: spans, and the context that leads from one to the next. Off until :func:`use`.

A context is text, as :mod:`flywheel.traceparent` has it: so it goes into headers and tables. While tracing is off
every call here does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TracerProvider,
)

from flywheel.traceparent import trace_id

__all__ = [
    "Attributes", "Linked", "Span", "SpanKind", "current", "event", "exemplar", "failed", "ids", "mark",
    "mark_all", "on", "say", "span", "trace_id", "tracer_provider", "use",
]  # fmt: skip

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
#: A context that a span links to, and what the link says.
Linked = tuple[str, Attributes]

_NOTHING: Attributes = {}
_AT_ONCE = 100
_provider: TracerProvider | None = None
_tracer: trace.Tracer | None = None
_most_links = 0


def use(new: TracerProvider | None, most_links: int = 128) -> None:
    """Trace with this provider from now on, in the whole process; None: not at all. A span links to at most
    ``most_links`` others.
    """
    global _provider, _tracer, _most_links
    _provider, _most_links = new, most_links
    _tracer = None if new is None else new.get_tracer("flywheel")


def on() -> bool:
    """Whether anything is traced."""
    return _tracer is not None


def tracer_provider() -> TracerProvider | None:
    """Return what traces, for libraries that trace themselves; None while tracing is off."""
    return _provider


@contextmanager
def span(
    name: str, *, parent: str | None = None, links: Iterable[Linked] = (), kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = _NOTHING,
) -> Iterator[Span]:  # fmt: skip
    """Trace what is done within, as part of ``parent``, or else of what is current, or else as a trace of its own.

    An error that ends it is named by its class alone: messages may quote what was recorded.
    """
    if _tracer is None:
        yield INVALID_SPAN
        return
    with _tracer.start_as_current_span(
        name, context=_context(parent), kind=kind, attributes=attributes, links=_links(links),
        record_exception=False, set_status_on_exception=False,
    ) as started:  # fmt: skip
        try:
            yield started
        except Exception as error:
            failed(type(error).__name__)
            raise


def mark(
    name: str, *, parent: str | None = None, links: Iterable[Linked] = (), kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = _NOTHING,
) -> str | None:  # fmt: skip
    """Put a span without duration into a trace: something came to be. Returns its context, None when not sampled."""
    if _tracer is None:
        return None
    made = _tracer.start_span(
        name, context=_context(parent), kind=kind, attributes=attributes, links=_links(links)
    )  # fmt: skip
    made.end()
    return _text(made)


async def mark_all(
    name: str, contexts: Iterable[str], *, links: Sequence[Linked] = (), attributes: Attributes = _NOTHING
) -> None:
    """Put the same mark into many traces; others get their turn in between."""
    for number, context in enumerate(contexts, 1):
        mark(name, parent=context, links=links, attributes=attributes)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)


def current() -> str | None:
    """Return the context of what is traced here and now; None where nothing is."""
    return _text(trace.get_current_span()) if _tracer is not None else None


def say(attributes: Attributes) -> None:
    """Note on the current span what is known by now."""
    if _tracer is not None:
        trace.get_current_span().set_attributes(attributes)


def event(name: str, attributes: Attributes = _NOTHING) -> None:
    """Note a moment on the current span."""
    if _tracer is not None:
        trace.get_current_span().add_event(name, attributes)


def failed(kind: str) -> None:
    """Say that what is traced here failed; ``kind`` is a short stable label."""
    if _tracer is not None:
        here = trace.get_current_span()
        here.set_attribute("error.type", kind)
        here.set_status(StatusCode.ERROR)


def ids() -> dict[str, str]:
    """Return the ids of the current span, for logs and exemplars; nothing where nothing is sampled."""
    context = current()
    return {} if context is None else {"trace_id": trace_id(context), "span_id": context[36:52]}


def exemplar() -> dict[str, str] | None:
    """Return what a metric's observation says of the trace it was made in; None where there is none."""
    return ids() or None


def _text(of: Span) -> str | None:
    context = of.get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    ids = f"{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
    return f"00-{ids}-{context.trace_flags:02x}"


def _span_context(context: str) -> SpanContext:
    flags = TraceFlags(int(context[53:55], 16))
    return SpanContext(int(trace_id(context), 16), int(context[36:52], 16), is_remote=True, trace_flags=flags)


def _context(parent: str | None) -> Context | None:
    return None if parent is None else trace.set_span_in_context(NonRecordingSpan(_span_context(parent)), Context())


def _links(linked: Iterable[Linked]) -> list[Link]:
    return [Link(_span_context(context), attributes) for context, attributes in islice(linked, _most_links)]
