"""What is taken for a trace context: what W3C's specification says one is, if it is sampled."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flywheel import traceparent

_hex = st.text("0123456789abcdef", min_size=32, max_size=32)
_like = st.builds(
    lambda version, trace_id, span, flags, more: f"{version}-{trace_id}-{span}-{flags}{more}",
    st.sampled_from(["00", "00", "01", "cc", "ff", "0g", "0"]), _hex | st.just("0" * 32),
    _hex.map(lambda text: text[:16]) | st.just("0" * 16),
    st.sampled_from(["00", "01", "02", "03", "ff", "1", "0G"]), st.sampled_from(["", "", " ", "-", "-more", "x"]),
)  # fmt: skip


def reference(text: str) -> trace.SpanContext:
    """What OpenTelemetry's own reader makes of it."""
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    return trace.get_current_span(context).get_span_context()


@given(_like | st.text(max_size=80))
@example("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
@example("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-is-to-come")
def test_it_is_read_as_opentelemetry_reads_it(text: str) -> None:
    found, wanted = traceparent.sampled(text), reference(text)
    if not wanted.is_valid or not wanted.trace_flags.sampled:
        assert found is None
        return
    assert found is not None
    ids = f"{trace.format_trace_id(wanted.trace_id)}-{trace.format_span_id(wanted.span_id)}"
    assert found == f"00-{ids}-{wanted.trace_flags & 3:02x}"
    assert traceparent.trace_id(found) == trace.format_trace_id(wanted.trace_id)
    assert traceparent.sampled(found) == traceparent.sampled(text.encode()) == found


@given(st.binary(max_size=600))
def test_any_bytes_are_taken_without_complaint(value: bytes) -> None:
    assert traceparent.sampled(value) is None or value.isascii()


def test_what_is_no_header_at_all_is_none() -> None:
    assert traceparent.sampled(None) is None
    assert traceparent.sampled(b"00-" + b"a" * 10_000_000) is None
