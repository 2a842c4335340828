"""What the SDK tells of itself to OpenTelemetry, where the agent wants that: the port, and nothing behind it.

An agent that does not trace needs no library for it, and its calls do next to nothing here. :mod:`flywheel.sdk.otel`
is what does trace.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flywheel import traceparent
from flywheel.events import LLMCall, ProviderAccess, Step
from flywheel.messages import ModelUpdate

_log = logging.getLogger("flywheel.sdk")

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

#: What a span is opened for: a turn, a call of a language model, an access to a provider.
Opened = type[Step] | type[LLMCall] | type[ProviderAccess]


class Span:
    """Something that takes its time, as a trace has it; this one is not traced. No call raises or waits."""

    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.headers = headers
        """What goes with a message about it, so that others can go on in its trace."""

    def opened(self, kind: Opened, fields: Mapping[str, Any]) -> Span:
        """Return the span of a part of it that begins now."""
        return self

    def happened(self, kind: type[Any], fields: Mapping[str, Any]) -> Span:
        """Return the span that an event belongs to: a call that is over has its own, which is ended already."""
        return self

    def enter(self) -> None:
        """Let what the agent's own libraries trace from now on be part of it."""

    def leave(self) -> None:
        """Take back what :meth:`enter` did."""

    def failed(self, error: BaseException) -> None:
        """Say that it failed."""

    def end(self, fields: Mapping[str, Any] = NO_HEADERS) -> None:
        """Say that it is over, and what is known of it by then."""


#: Of whatever is not traced.
NO_SPAN = Span()


class Spans:
    """Begins spans; these are not traced."""

    def trajectory(self, agent_id: str, trajectory_id: str, fields: Mapping[str, Any]) -> Span:
        """Return the span of a trajectory that begins now, part of what the agent traces itself, if it does."""
        return NO_SPAN

    def load(self, agent_id: str, update: ModelUpdate, announced: bytes | str | None) -> Span:
        """Return the span of loading a version, in the trace of its announcement (the header ``traceparent``)."""
        context = traceparent.sampled(announced)  # handed on, so that the acknowledgement is in the trace all the same
        return NO_SPAN if context is None else Span({traceparent.HEADER: context})


def open_spans(on: bool, ratio: float) -> Spans:
    """Return what traces, when it is to be ``on`` and can be; ``ratio`` is the share of trajectories."""
    if not on:
        return Spans()
    try:
        from flywheel.sdk.otel import OtelSpans
    except ImportError:
        _log.warning("nothing is traced: OpenTelemetry is not installed (pip install 'flywheel[otel]')")
        return Spans()
    return OtelSpans(ratio)
