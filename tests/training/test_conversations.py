"""Conversations under templates that bite, recorded in all ways there are: what was said is what is trained on."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.events import LLMCall
from services.trainer.calls import CallDropped, Rules, Tokens
from services.trainer.ledger import Ledger
from services.trainer.rendering import Renderer
from services.trainer.rows import Row, build
from tests.support.calls import RULES, sampled, trajectory
from tests.training.templates import TEMPLATES
from tests.training.test_rendering import TOOL, end_of, prompt_of, read, said, tokenizer

pytestmark = pytest.mark.torch

#: How a call was recorded: whole, without log-probabilities, as text; by the current version or an older one.
WAYS = ["whole", "ids", "text", "old ids", "old text"]
SYSTEMS = [[], [{"role": "system", "content": "the sky"}]]
#: A system turn alone asks for an answer too.
OPENINGS = [{"role": "system", "content": "no"}, {"role": "user", "content": "is the sky blue"}]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, str, list[LLMCall], list[str]]:
    """Tokenizer, template, calls and how each was recorded. Each call's prompt is what was said so far."""
    kind, name = draw(st.sampled_from(["byte_pairs", "pieces"])), draw(st.sampled_from(sorted(TEMPLATES)))
    spoken = tokenizer(kind, TEMPLATES[name])
    messages = [*draw(st.sampled_from(SYSTEMS)), draw(st.sampled_from(OPENINGS))]
    tools = [TOOL] if draw(st.booleans()) else None
    calls: list[LLMCall] = []
    ways: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        response, way = draw(said), draw(st.sampled_from(WAYS))
        made = LLMCall.model_validate(
            {
                "trajectory_id": "t", "agent_id": "a", "seq": 0, "model": "m", "messages": list(messages),
                "response": response, "finish_reason": "stop", "tools": tools,
                "model_version": "1.3.0" if way.startswith("old") else "1.4.0",
            }
        )  # fmt: skip
        if not way.endswith("text"):
            try:
                prompt = prompt_of(spoken, made)
            except Exception:
                continue  # the template refuses these messages: no server could have answered
            completion = [*spoken(response, add_special_tokens=False)["input_ids"], end_of(spoken)]
            made = made.model_copy(
                update={
                    "prompt_token_ids": prompt, "completion_token_ids": completion,
                    "completion_logprobs": [-0.5] * len(completion) if way == "whole" else None,
                }
            )  # fmt: skip
        calls.append(made)
        ways.append(way)
        reply = {"role": "user", "content": draw(said)}
        messages += [{"role": "assistant", "content": response}, reply]
        if draw(st.integers(0, 4)) == 0:
            del messages[-3:-1]  # the agent forgets a turn
    return kind, name, calls, ways


def rules_of(renderer: Renderer) -> Rules:
    return dataclasses.replace(RULES, max_tokens=None, restore=renderer.restore, supervise=True)


@settings(max_examples=250, deadline=None)
@given(conversations())
def test_every_call_is_trained_on_once_behind_its_own_prompt_or_dropped_with_its_reason(
    conversation: tuple[str, str, list[LLMCall], list[str]],
) -> None:
    kind, name, calls, ways = conversation
    spoken = tokenizer(kind, TEMPLATES[name])
    renderer = Renderer(spoken, {end_of(spoken)})
    ledger = Ledger()
    rows = build(trajectory(*calls), rules_of(renderer), ledger)
    assert ledger.calls["usable"] + sum(ledger.calls_dropped.values()) == ledger.calls["read"] == len(calls)
    trained = 0
    for made, way in zip(calls, ways, strict=True):
        found = renderer.restore(made) if way.endswith("text") else _ids(made)
        if isinstance(found, CallDropped):
            assert ledger.calls_dropped[found]
            continue
        homes = [row for row in rows if row.supervised == way.startswith("old") and _has(row, found, way)]
        assert homes, "in a row of its sort, after exactly the tokens that it was sampled from"
        trained += len(found.completion)
        if way.endswith("text"):
            text = found.completion[:-1] if found.completion[-1] == end_of(spoken) else found.completion
            whole = read(spoken, found.prompt + text) == read(spoken, found.prompt) + str(made.response)
            assert whole or read(spoken, text) == made.response
    assert sum(len(sampled(row)) for row in rows) == trained, "nothing twice, nothing else"
    assert ledger.calls["supervised"] == sum(
        way.startswith("old") and not isinstance(renderer.restore(made), CallDropped)
        if way == "old text"
        else way == "old ids"
        for made, way in zip(calls, ways, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(conversations())
def test_what_has_a_ratio_has_its_own_log_probabilities_or_waits_for_them(
    conversation: tuple[str, str, list[LLMCall], list[str]],
) -> None:
    kind, name, calls, _ = conversation
    spoken = tokenizer(kind, TEMPLATES[name])
    for row in build(trajectory(*calls), rules_of(Renderer(spoken, {end_of(spoken)})), Ledger()):
        unknown = set(row.unknown)
        for position, mine in enumerate(row.sampled):
            if not mine:
                assert row.logprobs[position] == 0.0
            elif row.supervised:
                assert row.logprobs[position] == 0.0
                assert row.versions[position] < RULES.current.number
            else:
                assert position in unknown or row.logprobs[position] == -0.5
                assert row.versions[position] == RULES.current.number


def _ids(made: LLMCall) -> Tokens:
    assert made.prompt_token_ids is not None and made.completion_token_ids is not None
    return Tokens(made.prompt_token_ids, made.completion_token_ids)


def _has(row: Row, found: Tokens, way: str) -> bool:
    start, end = len(found.prompt), len(found.prompt) + len(found.completion)
    here = row.tokens[:end] == found.prompt + found.completion and row.sampled[start:end] == [1] * (end - start)
    return here and (way != "whole" or row.logprobs[start:end] == [-0.5] * (end - start))
