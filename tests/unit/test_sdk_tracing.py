"""What an agent's trajectories, turns and calls look like in OpenTelemetry, and that none of it can harm the agent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from flywheel.messages import Artifact, ModelUpdate
from flywheel.sdk import Options, Recorder, otel
from flywheel.sdk.spans import NO_SPAN, Spans, open_spans
from tests.support.processes import ROOT, service_environment
from tests.support.sdk import MemoryBroker
from tests.support.tracing import Spans as Traced
from tests.support.tracing import text

CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"
UPDATE = ModelUpdate(
    deployment_id="d", channel="c", version="1.1.0", number=2,
    artifact=Artifact(model_id="m", manifest="x", manifest_sha256="y", bytes=1),
)  # fmt: skip


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """The agent's own tracing."""
    spans = Traced()
    monkeypatch.setattr(otel.trace, "get_tracer_provider", lambda: spans.provider)
    yield spans


def recorder(broker: MemoryBroker, **options: Any) -> Recorder:
    return Recorder("a-1", connect=broker.connect, options=Options(tracing=True, **options))


async def test_each_event_carries_the_span_that_it_belongs_to(spans: Traced) -> None:
    broker = MemoryBroker()
    async with recorder(broker, strict=True) as r, r.trajectory("s-1", group_id="g", model_version="1.0.0") as t:
        async with t.step() as step:
            async with step.llm_call(sampling={"temperature": 0.5}) as call:
                answer = {"model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
                call.answered({**answer, "choices": [{"message": {"content": "SECRET"}, "finish_reason": "stop"}]})
            step.log_provider_access("news", data="SECRET")
            step.complete(action={"name": "buy", "parameters": {"n": "SECRET"}, "success": True}, reward=0.5)
        t.log_reward(1.0)
        await r.flush()
    began, turn = spans.one("invoke_agent"), spans.one("step")
    chat, access = spans.one("chat m-1"), spans.one("execute_tool news")
    assert began.parent is None
    assert turn.parent == began.context and chat.parent == access.parent == turn.context
    assert (chat.kind, access.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    carried = {event.kind: item.headers for item, event in zip(broker.arrived, broker.events(), strict=True)}
    assert {kind: headers["traceparent"] for kind, headers in carried.items()} == {
        "trajectory_started": text(began), "llm_call": text(chat), "provider_access": text(access), "step": text(turn),
        "reward": text(began), "trajectory_ended": text(began),
    }  # fmt: skip
    assert dict(began.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": "a-1", "flywheel.trajectory.id": t.id,
        "flywheel.scenario.id": "s-1", "flywheel.group.id": "g", "flywheel.model.version": "1.0.0",
    }  # fmt: skip
    assert dict(chat.attributes or {}) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "_OTHER", "gen_ai.request.model": "m-1",
        "gen_ai.request.temperature": 0.5, "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("stop",), "flywheel.step": 0,
    }  # fmt: skip
    assert dict(turn.attributes or {}) == {
        "flywheel.step": 0, "flywheel.action": "buy", "flywheel.action.success": True, "flywheel.reward": 0.5,
    }  # fmt: skip
    assert not any("SECRET" in span.to_json() for span in spans.all())


async def test_it_is_part_of_what_the_agent_traces_and_the_agents_libraries_of_it(spans: Traced) -> None:
    theirs = spans.provider.get_tracer("theirs")
    async with recorder(MemoryBroker()) as r:
        with theirs.start_as_current_span("request"):
            async with r.trajectory("s") as t, t.step() as step, step.llm_call(model="m"):
                with theirs.start_as_current_span("POST"):
                    pass
            with theirs.start_as_current_span("afterwards"):
                pass
    assert spans.one("invoke_agent").parent == spans.one("request").context
    assert spans.one("POST").parent == spans.one("chat m").context
    assert spans.one("afterwards").parent == spans.one("request").context


async def test_a_call_that_is_over_took_as_long_as_it_says(spans: Traced) -> None:
    ended = datetime(2026, 11, 23, 4, tzinfo=UTC)
    async with recorder(MemoryBroker()) as r, r.trajectory("s") as t:
        t.log_llm_call(model="m", latency_ms=1500.0, time=ended)
    chat = spans.one("chat m")
    assert chat.end_time == ended.timestamp() * 1e9
    assert chat.start_time == (ended - timedelta(seconds=1.5)).timestamp() * 1e9


async def test_what_raises_is_shown_by_its_class_and_goes_on(spans: Traced) -> None:
    with pytest.raises(ValueError, match="SECRET"):
        async with recorder(MemoryBroker()) as r, r.trajectory("s") as t, t.step() as step, step.llm_call(model="m"):
            raise ValueError("SECRET")
    for name in ("invoke_agent", "step", "chat m"):
        assert spans.one(name).status.status_code is StatusCode.ERROR
        assert (spans.one(name).attributes or {})["error.type"] == "ValueError"
    assert not any("SECRET" in span.to_json() for span in spans.all())


async def test_what_is_not_sampled_costs_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, broker = Traced(share=0.0), MemoryBroker()
    monkeypatch.setattr(otel.trace, "get_tracer_provider", lambda: spans.provider)
    async with recorder(broker) as r, r.trajectory("s") as t, t.step() as step:
        step.log_llm_call(model="m")
    assert len(broker.arrived) == 4 and not any(item.headers for item in broker.arrived)
    assert spans.all() == []


async def test_fields_that_make_no_sense_and_handles_left_elsewhere_do_no_harm(spans: Traced) -> None:
    odd: Any = object()
    async with recorder(MemoryBroker()) as r:
        t = r.start_trajectory("s", group_id=odd)
        t.log_llm_call(model=odd, usage=odd, sampling=odd, latency_ms=odd, time=odd, prompt_token_ids=odd)
        t.log_provider_access(odd)
        step = t.start_step()
        step.__enter__()
        await asyncio.create_task(leave(step))
        t.end(status=odd)
        t.end()
    assert otel.trace.get_current_span().get_span_context().is_valid is True  # what was entered here is still ours
    assert spans.names()


async def leave(step: Any) -> None:
    step.__exit__(None, None, None)


def test_a_version_is_loaded_within_its_announcements_trace(spans: Traced) -> None:
    span = open_spans(True, 1.0).load("a-1", UPDATE, CONTEXT)
    span.end({"load_seconds": 0.5})
    loaded = spans.one("load model")
    assert loaded.parent is not None and loaded.parent.span_id == int("b" * 16, 16)
    assert dict(span.headers) == {"traceparent": text(loaded)}
    assert (loaded.attributes or {})["flywheel.model.version"] == "1.1.0"
    assert (loaded.attributes or {})["flywheel.load_seconds"] == 0.5


def test_an_agent_that_does_not_trace_hands_the_context_of_an_announcement_on() -> None:
    assert dict(Spans().load("a-1", UPDATE, CONTEXT).headers) == {"traceparent": CONTEXT}
    for odd in (None, "", "garbage", b"\xff", CONTEXT[:-1] + "0"):
        assert Spans().load("a-1", UPDATE, odd) is NO_SPAN


_PLAY = """
import asyncio, logging, sys
{before}
from flywheel.sdk import Options, Recorder
from tests.support.sdk import MemoryBroker

async def main():
    broker = MemoryBroker()
    async with Recorder("a", connect=broker.connect, options=Options(tracing={tracing})) as r:
        async with r.trajectory("s") as t, t.step() as step:
            step.log_llm_call(model="m")
    assert r.stats.acked == 4 and not any(item.headers for item in broker.arrived)

asyncio.run(main())
{after}
"""
_BLOCK = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError("no module named opentelemetry")
sys.meta_path.insert(0, Absent())
"""


def play(*, tracing: bool, before: str = "", after: str = "") -> str:
    """Run an agent in a process of its own; return what it logged."""
    code = _PLAY.format(tracing=tracing, before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=service_environment({}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_off_nothing_of_opentelemetry_is_imported() -> None:
    play(tracing=False, after="assert not [name for name in sys.modules if name.startswith('opentelemetry')]")


def test_without_the_library_an_agent_that_shall_trace_says_so_and_records() -> None:
    assert "flywheel[otel]" in play(tracing=True, before=_BLOCK)
    assert play(tracing=False, before=_BLOCK) == ""
