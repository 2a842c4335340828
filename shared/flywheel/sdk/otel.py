"""The SDK's spans in OpenTelemetry. Nothing here breaks or holds up the agent: a trace is not worth that."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from time import time_ns
from typing import Any, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flywheel import traceparent
from flywheel.events import LLMCall, ProviderAccess
from flywheel.messages import ModelUpdate
from flywheel.sdk import described
from flywheel.sdk.spans import NO_HEADERS, NO_SPAN, Opened, Span, Spans

_log = logging.getLogger("flywheel.sdk")

_carrier = TraceContextTextMapPropagator()
#: Longest wait, when the process exits, for a collector to take the last spans, in seconds.
_LAST_SPANS_S = 2.0
_lock = threading.Lock()
_own: Tracer | None = None

Method = TypeVar("Method", bound=Callable[..., Any])


def _harmless(method: Method) -> Method:
    """Return the method as one that raises nothing."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **more: Any) -> Any:
        try:
            return method(self, *args, **more)
        except Exception:
            _log.debug("tracing failed", exc_info=True)
            return self if isinstance(self, Span) else NO_SPAN

    return guarded  # pyright: ignore[reportReturnType]


class OtelSpans(Spans):
    """Begins spans with the agent's own tracing, where that is set up by the first of them; else with one of ours,
    which samples the share ``ratio`` and sends by OTLP.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._tracer: Tracer | None = None

    @_harmless
    def trajectory(self, agent_id: str, trajectory_id: str, fields: Mapping[str, Any]) -> Span:
        """Return the span of a trajectory that begins now, part of what the agent traces itself, if it does."""
        attributes = described.begun(agent_id, trajectory_id, fields)
        return OtelSpan(self._get_tracer(), "invoke_agent", None, attributes=attributes)

    @_harmless
    def load(self, agent_id: str, update: ModelUpdate, announced: bytes | str | None) -> Span:
        """Return the span of loading a version, in the trace of its announcement."""
        found = traceparent.sampled(announced)
        parent = context.Context() if found is None else _carrier.extract({traceparent.HEADER: found})
        attributes = described.loaded(agent_id, update)
        return OtelSpan(self._get_tracer(), "load model", parent, attributes=attributes)

    def _get_tracer(self) -> Tracer:
        if self._tracer is None:
            theirs = trace.get_tracer_provider()
            ours = isinstance(theirs, trace.ProxyTracerProvider)
            self._tracer = _own_tracer(self._ratio) if ours else theirs.get_tracer("flywheel.sdk")
        return self._tracer


class OtelSpan(Span):
    """A span that OpenTelemetry knows. Only a sampled one has headers: nobody could look at another."""

    __slots__ = ("_entered", "_kind", "_span", "_tracer")

    def __init__(
        self, tracer: Tracer, name: str, parent: context.Context | None, *, kind: type[Any] | None = None,
        attributes: described.Attributes | None = None, start_ns: int | None = None,
    ) -> None:  # fmt: skip
        self._tracer = tracer
        self._kind = kind
        self._span = tracer.start_span(
            name, parent, kind=SpanKind.CLIENT if kind is LLMCall else SpanKind.INTERNAL, attributes=attributes,
            start_time=start_ns,
        )  # fmt: skip
        self._entered: tuple[Any, context.Context] | None = None
        headers: dict[str, str] = {}
        if self._span.get_span_context().trace_flags.sampled:
            _carrier.inject(headers, self._alone())
        super().__init__(headers)

    @_harmless
    def opened(self, kind: Opened, fields: Mapping[str, Any]) -> Span:
        """Return the span of a part of it that begins now."""
        return OtelSpan(self._tracer, described.name(kind, fields), self._alone(), kind=kind)

    @_harmless
    def happened(self, kind: type[Any], fields: Mapping[str, Any]) -> Span:
        """Return the span that an event belongs to: a call that is over has its own, which is ended already."""
        if kind is not LLMCall and kind is not ProviderAccess:
            return self
        told, took = fields.get("time"), fields.get("latency_ms")
        ended = round(told.timestamp() * 1e9) if isinstance(told, datetime) else time_ns()
        began = ended - round(took * 1e6) if isinstance(took, int | float) and took > 0 else ended
        part = OtelSpan(self._tracer, described.name(kind, fields), self._alone(), kind=kind, start_ns=began)
        part._end(fields, ended)
        return part

    @_harmless
    def enter(self) -> None:
        """Let what the agent's own libraries trace from now on be part of it."""
        inside = trace.set_span_in_context(self._span)
        self._entered = context.attach(inside), inside

    @_harmless
    def leave(self) -> None:
        """Take back what :meth:`enter` did; not where somebody else's span is current, which its owner takes away."""
        entered, self._entered = self._entered, None
        if entered is not None and context.get_current() is entered[1]:
            context.detach(entered[0])

    @_harmless
    def failed(self, error: BaseException) -> None:
        """Say that it failed, by the class of the error alone: its words may be data."""
        self._span.set_attribute("error.type", type(error).__name__)
        self._span.set_status(StatusCode.ERROR)

    @_harmless
    def end(self, fields: Mapping[str, Any] = NO_HEADERS) -> None:
        """Say that it is over, and what is known of it by then."""
        self._end(fields, None)

    def _end(self, fields: Mapping[str, Any], at_ns: int | None) -> None:
        if self._span.is_recording():
            self._span.set_attributes(described.ended(self._kind, fields))
            if self._kind is not None:
                self._span.update_name(described.name(self._kind, fields))
            if described.wrong(fields):
                self._span.set_status(StatusCode.ERROR)
        self._span.end(at_ns)

    def _alone(self) -> context.Context:
        return trace.set_span_in_context(self._span, context.Context())


def _own_tracer(ratio: float) -> Tracer:
    """Return what traces a process that has no tracing of its own; the same for all of the process."""
    global _own
    with _lock:
        if _own is None:
            try:
                from flywheel.tracing.provider import pipeline

                made = pipeline("flywheel-agent", ratio=ratio, tell=lambda outcome, spans: None)
            except (ImportError, ValueError) as error:
                _log.warning("nothing is traced: %s (pip install 'flywheel[otel]')", error)
                _own = NoOpTracer()
            else:
                atexit.register(made.close, _LAST_SPANS_S)
                _own = made.provider.get_tracer("flywheel.sdk")
        return _own
