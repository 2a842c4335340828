"""The fast reader against the models: whatever it accepts they accept, and both make the same row of it."""

from __future__ import annotations

import json
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.errors import PoisonError
from flywheel.events import KINDS, parse
from flywheel.windows import window_of
from services.recorder import lean
from services.recorder.aggregate import delta_of

_NEEDED: dict[str, dict[str, Any]] = {
    "step": {"step": 0},
    "llm_call": {"model": "m"},
    "provider_access": {"provider": "p"},
    "reward": {"reward_kind": "immediate", "value": 1.5},
    "trajectory_started": {"scenario_id": "s"},
    "trajectory_ended": {},
}


def fields(kind: str = "step", **more: Any) -> dict[str, Any]:
    envelope = {
        "event_id": "019aa000-0000-7000-8000-000000000001", "trajectory_id": "t", "seq": 1, "agent_id": "a",
        "time": "2026-11-23T06:00:01.25Z", "kind": kind,
    }  # fmt: skip
    return envelope | _NEEDED[kind] | more


def agrees(raw: bytes) -> bool:
    """Hold both readers against each other; return whether the fast one took it."""
    quick = lean.read(raw)
    if quick is None:
        return False
    model = parse(raw)  # raises, should only the fast one take it
    assert abs(quick.time - model.time) <= timedelta(microseconds=1)
    assert window_of(quick.time) == window_of(model.time)
    for name in type(model).model_fields.keys() & {"event_id", "trajectory_id", "seq", "agent_id", "kind", "step"}:
        assert getattr(quick, name) == getattr(model, name), name
    assert delta_of(quick, model.time) == delta_of(model, model.time)
    return True


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([
        0, -1, 1.0, 2**31, 2**63, 10**400, -0.0, 1e308, "", "a b", "a\n", "é", "x" * 201, "2026-01-01T00:00:00Z",
        "2026-01-01T00:59:59.9999999Z", "2026-01-01T00:00:00", "infrastructure", "outcome", "completed", "held_out",
        "\ud800", "\x00",
    ]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
llm_parts = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries({"role": json_values}, optional={"content": json_values}), max_size=2
        ),
        "tool_calls": st.lists(st.fixed_dictionaries({"function": json_values}, optional={"type": json_values})),
        "prompt_token_ids": json_values | st.lists(st.integers(-1, 2**33), max_size=3),
        "completion_token_ids": st.lists(st.integers(0, 9), max_size=2),
        "completion_logprobs": st.lists(st.floats() | st.integers(-3, 0), max_size=2),
        "usage": st.fixed_dictionaries({}, optional={"prompt_tokens": json_values, "completion_tokens": json_values}),
        "failure": st.sampled_from(["infrastructure", "agent", "none", None]),
    },
)
names = st.sampled_from([
    "event_id", "trajectory_id", "seq", "agent_id", "time", "schema_version", "step", "reward", "reward_components",
    "done", "action", "environment_state", "observation", "started_at", "group_id", "group_size", "split", "metadata",
    "value", "reward_kind", "name", "status", "dropped", "final_pnl", "metrics", "model_version", "latency_ms",
    "unknown",
])  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.dictionaries(names, json_values, max_size=3), llm_parts, st.booleans())
def test_what_the_fast_reader_takes_the_models_take_and_see_alike(
    kind: str, more: dict[str, Any], parts: dict[str, Any], escaped: bool
) -> None:
    event = fields(kind, **more) | (parts if kind == "llm_call" else {})
    agrees(json.dumps(event, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(0, 200))
def test_bytes_in_the_wrong_place_make_no_difference(noise: bytes, at: int) -> None:
    raw = json.dumps(fields(observation="[{some text}]")).encode()
    agrees(raw[:at] + noise + raw[at:])


def inserted(text: str) -> bytes:
    return (json.dumps(fields())[:-1] + ", " + text + "}").encode()


@pytest.mark.parametrize(
    "text",
    [
        r'"observation": "\ud800"', r'"unknown": "\udc00"', r'"environment_state": {"\ud800": 1}', '"unknown": "a\nb"',
        r'"unknown": "\x41"', '"unknown": 01', '"unknown": 1.', '"unknown": NaN', '"observation": -Infinity',
        '"unknown": ' + "1" * 5_000, '"observation": [' + "1" * 9_000 + "]", '"reward": ' + "1" * 400,
        '"reward": 1e999',
        '"unknown": ' + "[" * 201 + "]" * 201, '"observation": ' + '{"a":' * 300 + "1" + "}" * 300, '"seq": "1"',
        '"kind": "reward"', '"unknown": 1,',
    ],
)  # fmt: skip
def test_what_the_models_refuse_is_left_to_them(text: str) -> None:
    assert lean.read(inserted(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        '"unknown": [' + ", ".join(["[1]"] * 300) + "]", '"observation": "' + "[" * 500 + '"', '"reward": 1e-400',
        '"observation": ' + "[" * 150 + "]" * 150, '"seq": 5', '"unknown": ' + "1" * 300,
    ],
)  # fmt: skip
def test_what_is_large_but_sound_is_read_fast(text: str) -> None:
    assert agrees(inserted(text))


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_events_of_every_kind_are_read_fast(kind: str) -> None:
    assert agrees(json.dumps(fields(kind)).encode())


def test_a_time_that_rounding_would_move_to_another_window_is_left_to_the_models() -> None:
    for time in ("06:59:59.9999999Z", "04:29:59.9999999+05:30", "04:44:59.9999999-00:15"):
        assert lean.read(json.dumps(fields(time=f"2026-11-23T{time}")).encode()) is None


def test_an_identifier_is_printable_ascii_without_spaces() -> None:
    for bad in ("a b", "a\n", "é", "", "x" * 201, "a\x7f"):
        assert lean.read(json.dumps(fields(trajectory_id=bad)).encode()) is None
        assert lean.read(json.dumps(fields("trajectory_started", group_id=bad)).encode()) is None


@pytest.mark.parametrize("tail", [b"", b"\\", b'"'])
def test_a_text_of_escapes_without_an_end_takes_no_longer_than_any_other(tail: bytes) -> None:
    assert lean.read(b"[" * 200 + b'"' + b'\\"' * 1_000_000 + tail) is None  # days, when each quote is a new beginning


@pytest.mark.parametrize(
    "part", ['"prompt_token_ids": [' + "-1," * 1_300_000 + "-1]", '"messages": [' + "{}," * 1_300_000 + "{}]"]
)
def test_a_million_wrong_items_are_one_error(part: str) -> None:
    raw = (json.dumps(fields("llm_call"))[:-1] + ", " + part + "}").encode()
    tracemalloc.start()
    with pytest.raises(PoisonError) as caught:
        parse(raw)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason == "schema"
    assert most < 200 * 2**20  # a list of what came, but no error for each of it


def test_thousands_of_wrong_entries_are_counted_not_listed() -> None:
    components = {f"c{n}": "x" for n in range(5_000)}
    with pytest.raises(PoisonError, match="5,000 fields"):
        parse(json.dumps(fields(reward_components=components)).encode())
