"""Tracing within a test's own process: spans as OpenTelemetry's SDK has them, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased

from flywheel import tracing
from flywheel.tracing.provider import LinkedOrShare


class Spans:
    """What was traced."""

    def __init__(self, share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(LinkedOrShare(share)), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> list[ReadableSpan]:
        """Return the spans that ended, in that order."""
        return list(self._exporter.get_finished_spans())

    def names(self) -> list[str]:
        return [span.name for span in self.all()]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of that name."""
        (span,) = (span for span in self.all() if span.name == name)
        return span


@contextmanager
def traced(share: float = 1.0, most_links: int = 128) -> Iterator[Spans]:
    """Trace within, as a service does."""
    spans = Spans(share)
    tracing.use(spans.provider, most_links)
    try:
        yield spans
    finally:
        tracing.use(None)


def text(of: ReadableSpan) -> str:
    """Return a span's context as it travels."""
    assert of.context is not None
    return f"00-{of.context.trace_id:032x}-{of.context.span_id:016x}-{of.context.trace_flags:02x}"
