"""A collector as a real HTTP server that speaks OTLP, well-behaved or as bad as one can be; and what it was told."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

#: How a collector may answer: a status, or whatever else it does.
Mode = int | Callable[[web.Request], Any]


@dataclass(frozen=True)
class Told:
    """A span as it arrived. Ids are hexadecimal; ``links`` are (trace, span, attributes)."""

    service: str
    name: str
    kind: int
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str, dict[str, Any]], ...]
    events: tuple[str, ...]
    error: bool
    start_ns: int
    end_ns: int


@dataclass
class Collector:
    """The server. ``mode`` is how it answers: 200 unless told otherwise. Spans are read and kept unless not to be."""

    mode: Mode = 200
    keep: bool = True
    spans: list[Told] = field(default_factory=list)
    requests: int = 0
    url: str = ""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Collector:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if not isinstance(self.mode, int):
            return await self.mode(request)
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.mode == 200 and self.keep:
            self.spans += read(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(status=self.mode, body=answer, content_type="application/x-protobuf")

    def named(self, name: str, service: str = "", **attributes: Any) -> list[Told]:
        """Return the spans of that name, of a service, with these attributes (dots are written as two underscores)."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return [
            told
            for told in self.spans
            if told.name == name
            and service in ("", told.service)
            and all(told.attributes.get(key) == value for key, value in wanted.items())
        ]

    def trace(self, trace: str) -> list[Told]:
        """Return a trace, in the order in which its spans began."""
        return sorted((told for told in self.spans if told.trace == trace), key=lambda told: told.start_ns)

    def ancestry(self, of: Told) -> list[Told]:
        """Return a span, its parent, its parent's parent … as far as they arrived."""
        by_id = {told.span: told for told in self.trace(of.trace)}
        line = [of]
        while (parent := by_id.get(line[-1].parent)) is not None:
            line.append(parent)
        return line


async def hangs(request: web.Request) -> web.StreamResponse:
    """Take a request and never answer."""
    await asyncio.sleep(3600)
    raise AssertionError


def read(request: ExportTraceServiceRequest) -> Iterator[Told]:
    """Yield the spans of a request."""
    for resource in request.resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Told(
                    service=about["service.name"], name=span.name, kind=span.kind, trace=span.trace_id.hex(),
                    span=span.span_id.hex(), parent=span.parent_span_id.hex(), attributes=_attributes(span.attributes),
                    links=tuple(
                        (link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links
                    ),
                    events=tuple(event.name for event in span.events), error=span.status.code == 2,
                    start_ns=span.start_time_unix_nano, end_ns=span.end_time_unix_nano,
                )  # fmt: skip


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")
