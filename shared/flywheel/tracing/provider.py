"""Where spans go: sampled, batched in a thread of their own, sent by OTLP over HTTP.

A collector that is away costs spans and nothing else: the queue is bounded, nobody waits for it, and what was lost is
told to who counts. Where it is, and what else OpenTelemetry's own variables say, its libraries read themselves:
docs/tracing.md lists them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from flywheel.sparing import spare

Outcome = Literal["exported", "failed", "dropped"]
#: Hears what became of how many spans, in whatever thread.
Tell = Callable[[Outcome, int], None]

#: They speak of every attempt that failed.
_WORDY = ("opentelemetry.sdk._shared_internal", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What traces, until :meth:`close`."""

    provider: TracerProvider
    exporter: OTLPSpanExporter
    most_links: int

    @property
    def endpoint(self) -> str:
        """Where spans are sent."""
        return self.exporter._endpoint

    def close(self, within_s: float) -> None:
        """Send what waits, for at most ``within_s`` seconds; what is left then is lost."""
        # Not its own time limit, which an exporter that retries does not know of.
        ending = threading.Thread(target=self.provider.shutdown, name="flywheel-traces-end", daemon=True)
        ending.start()
        ending.join(within_s)
        if ending.is_alive():
            self.exporter.shutdown()


def pipeline(name: str, *, ratio: float, tell: Tell) -> Pipeline:
    """Return what traces a process that is called ``name``, unless ``OTEL_SERVICE_NAME`` says otherwise.

    Raises ValueError for a variable of OpenTelemetry's that makes no sense.
    """
    spare(_WORDY)
    limits = SpanLimits()
    ours = Resource.create({SERVICE_NAMESPACE: "flywheel", SERVICE_NAME: name})
    made = TracerProvider(
        sampler=ParentBased(LinkedOrShare(ratio)), resource=ours.merge(OTELResourceDetector().detect()),
        span_limits=limits, shutdown_on_exit=False,
    )  # fmt: skip
    exporter = OTLPSpanExporter()
    made.add_span_processor(_Bounded(_Accounted(exporter, tell), tell))
    return Pipeline(made, exporter, 128 if limits.max_links is None else limits.max_links)


class LinkedOrShare(Sampler):
    """For spans without a parent: samples what links to something sampled, and of the rest a share.

    So the trace of a batch is there for whoever follows one of its members to it, however small the share.
    """

    def __init__(self, share: float) -> None:
        self._share = TraceIdRatioBased(share)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide on one span."""
        if any(link.context.trace_flags.sampled for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._share.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def get_description(self) -> str:
        """Return it in words."""
        return f"LinkedOrShare{{{self._share.rate}}}"


class _Accounted(SpanExporter):
    """An exporter that tells what became of the spans."""

    def __init__(self, inner: SpanExporter, tell: Tell) -> None:
        self._inner = inner
        self._tell = tell

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        self._tell("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Bounded(BatchSpanProcessor):
    """A batch processor that tells of the spans its full queue has no room for: each pushes the oldest out."""

    def __init__(self, exporter: SpanExporter, tell: Tell) -> None:
        super().__init__(exporter)
        self._tell = tell

    def on_end(self, span: ReadableSpan) -> None:
        waiting = self._batch_processor
        if span.context and span.context.trace_flags.sampled and len(waiting._queue) >= waiting._max_queue_size:
            self._tell("dropped", 1)
        super().on_end(span)
