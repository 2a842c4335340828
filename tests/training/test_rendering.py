"""Text back to token ids: exactly what was sampled, or a reason why it cannot be told."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from flywheel.events import LLMCall
from services.trainer.calls import CallDropped, Sampled, Tokens
from services.trainer.rendering import Renderer
from services.trainer.rows import chain
from tests.training import templates
from tests.training.templates import CLOCK, TEMPLATES, THINKING, TOKENIZERS

pytestmark = pytest.mark.torch

USER = {"role": "user", "content": "is the sky blue"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASKED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}],
}


@cache
def tokenizer(kind: str, template: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[kind](template)


def end_of(spoken: PreTrainedTokenizerFast) -> int:
    assert isinstance(spoken.eos_token_id, int)
    return spoken.eos_token_id


def restored(call: LLMCall, kind: str = "byte_pairs", template: str = THINKING) -> Tokens | CallDropped:
    spoken = tokenizer(kind, template)
    return Renderer(spoken, {end_of(spoken)}).restore(call)


def call(*messages: dict[str, Any], response: str | None = "yes", **fields: Any) -> LLMCall:
    values: dict[str, Any] = {"messages": list(messages) or [USER], "response": response, "finish_reason": "stop"}
    common: dict[str, Any] = {"trajectory_id": "t", "agent_id": "a", "seq": 0, "model": "m"}
    return LLMCall.model_validate({**common, **values, **fields})


def prompt_of(spoken: PreTrainedTokenizerFast, made: LLMCall) -> list[int]:
    """The prompt as a server makes it, by transformers' own way from messages to ids."""
    messages = [message.model_dump(exclude_none=True) for message in made.messages or []]
    tools: Any = made.tools
    found: Any = spoken.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    return found


def read(spoken: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text: Any = spoken.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


said = st.text(st.sampled_from("yesno the:\n é😀<|>/"), max_size=12) | st.sampled_from(
    ["yes", " yes", "yes ", "<think>the sky</think>yes", "<|end|>", "<|start|>user\n", "assistant: yes", ""]
)
turns = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), said),
    min_size=1, max_size=4,
)  # fmt: skip
systems = st.sampled_from([[], [{"role": "system", "content": "the sky"}]])
prompts = st.builds(lambda system, rest: system + rest, systems, turns) | st.just([{"role": "system", "content": "no"}])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(sorted(TEMPLATES)), prompts, said, st.booleans(),
    st.sampled_from(["stop", "length", None]),
)  # fmt: skip
def test_a_span_reads_as_the_recorded_response_or_the_call_is_dropped(
    kind: str, template: str, messages: list[dict[str, Any]], response: str, tools: bool, finish: str | None
) -> None:
    made = call(*messages, response=response, tools=[TOOL] if tools else None, finish_reason=finish)
    found = restored(made, kind, TEMPLATES[template])
    if isinstance(found, CallDropped):
        return
    spoken = tokenizer(kind, TEMPLATES[template])
    assert found.prompt == prompt_of(spoken, made)
    end = [end_of(spoken)] if finish == "stop" else []
    text = found.completion[: len(found.completion) - len(end)]
    assert found.completion == text + end
    assert not set(spoken.all_special_ids).intersection(text)
    in_place = read(spoken, found.prompt + text) == read(spoken, found.prompt) + response
    assert read(spoken, text) == response or in_place


@settings(max_examples=200, deadline=None)
@given(prompts, said.filter(lambda text: "<|" not in text), st.booleans())
def test_behind_a_control_token_every_answer_is_found_but_one_that_merges(
    messages: list[dict[str, Any]], response: str, tools: bool
) -> None:
    """Nothing is dropped without need: only a token that takes in the line end before the answer hides it."""
    made = call(*messages, response=response, tools=[TOOL] if tools else None)
    found, spoken = restored(made), tokenizer("byte_pairs", THINKING)
    sampled = spoken(response, add_special_tokens=False)["input_ids"]
    if response.startswith("\n"):
        assert found in (CallDropped.MERGED, Tokens(prompt_of(spoken, made), [*sampled, end_of(spoken)]))
    else:
        assert found == Tokens(prompt_of(spoken, made), [*sampled, end_of(spoken)])


@settings(max_examples=100, deadline=None)
@given(said.filter(lambda text: text != "" and "<|" not in text))
def test_another_spelling_than_the_tokenizers_is_refused_by_its_count(response: str) -> None:
    spoken = tokenizer("byte_pairs", THINKING)
    spelt = [token for one in response for token in spoken(one, add_special_tokens=False)["input_ids"]]
    found = restored(call(response=response, usage={"completion_tokens": len(spelt) + 1}))
    usual = spoken(response, add_special_tokens=False)["input_ids"]
    if len(usual) != len(spelt):
        assert isinstance(found, CallDropped)
    elif isinstance(found, Tokens):
        assert found.completion == [*usual, end_of(spoken)]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (call(response=None), CallDropped.NO_RESPONSE),
        (call(response="", finish_reason="length"), CallDropped.NO_RESPONSE),
        (call(response="yes", reasoning="because"), CallDropped.PARSED),
        (call(response="", tool_calls=ASKED["tool_calls"]), CallDropped.PARSED),
        (call(response="yes<|end|>no"), CallDropped.CONTROL),
        (call(messages=None), CallDropped.NO_MESSAGES),
        (call(messages=None, user_prompt="is the sky blue"), CallDropped.NO_MESSAGES),
        (call({"role": "user", "content": [{"type": "text", "text": "hello"}]}), CallDropped.NOT_TEXT),
        (call(usage={"prompt_tokens": 3}), CallDropped.OTHER_COUNT),
        (call(usage={"completion_tokens": 9}), CallDropped.OTHER_COUNT),
        (call(completion_logprobs=[-0.1] * 9), CallDropped.OTHER_COUNT),
        (call(usage={"completion_tokens": 2}, completion_logprobs=[-0.1]), CallDropped.OTHER_COUNT),
        (call(prompt_token_ids=[1, 2, 3]), CallDropped.OTHER_PROMPT),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_reason(made: LLMCall, reason: CallDropped) -> None:
    assert restored(made) == reason


def test_templates_that_do_not_serve_are_reasons() -> None:
    system = call({"role": "system", "content": "hello"})
    assert restored(system, template=templates.NO_SYSTEM) == CallDropped.REFUSED
    assert isinstance(restored(system), Tokens)
    assert restored(call(), template="") == CallDropped.NO_TEMPLATE
    assert restored(call(), template=CLOCK) == CallDropped.CLOCK


def test_a_token_over_the_boundary_hides_the_answer() -> None:
    assert restored(call(response="yes"), template=templates.BLANK) == CallDropped.MERGED
    assert isinstance(restored(call(response="😀"), template=templates.BLANK), Tokens)


def test_a_tokenizer_that_forgets_is_found_out() -> None:
    assert restored(call(response="yes  no"), "words", templates.BLANK) == CallDropped.NOT_EXACT
    assert restored(call(response="perhaps"), "words", templates.BLANK) == CallDropped.NOT_EXACT
    assert isinstance(restored(call(response="yes no"), "words", templates.BLANK), Tokens)


def test_a_tokenizer_that_raises_ends_no_job() -> None:
    said = {"role": "user", "content": "is it so"}
    assert restored(call(said, response="blue"), "strict", templates.BLANK) == CallDropped.NOT_SPELT
    assert isinstance(restored(call(said, response="yes"), "strict", templates.BLANK), Tokens)


def test_system_and_user_prompt_are_a_chat_of_two() -> None:
    two = call({"role": "system", "content": "no"}, USER)
    named = call(messages=None, system_prompt="no", user_prompt=USER["content"])
    assert restored(named) == restored(two)


def test_tools_and_their_arguments_are_rendered_as_objects() -> None:
    found = restored(call(USER, ASKED, {"role": "tool", "content": "blue", "tool_call_id": "1"}, tools=[TOOL]))
    assert isinstance(found, Tokens)
    text = read(tokenizer("byte_pairs", THINKING), found.prompt)
    assert '<call>{"name": "look", "arguments": {"at": "sky"}}</call>' in text
    assert '"parameters"' in text


@pytest.mark.parametrize(
    ("fields", "with_end"),
    [
        ({"finish_reason": "stop"}, True),
        ({"finish_reason": "length"}, False),
        ({"finish_reason": None}, False),
        ({"finish_reason": "stop", "sampling": {"stop": ["\n"]}}, False),
        ({"finish_reason": "length", "counted": 1}, True),
        ({"finish_reason": "stop", "counted": 0}, False),
    ],
)
def test_the_end_is_trained_on_where_it_was_certainly_sampled(fields: dict[str, Any], with_end: bool) -> None:
    spoken = tokenizer("byte_pairs", THINKING)
    text = spoken("yes", add_special_tokens=False)["input_ids"]
    counted = fields.pop("counted", None)
    usage = {} if counted is None else {"completion_tokens": len(text) + counted}
    found = restored(call(response="yes", usage=usage, **fields))
    assert isinstance(found, Tokens)
    assert found.completion == text + ([end_of(spoken)] if with_end else [])


def test_of_several_ends_the_template_says_which() -> None:
    spoken = tokenizer("byte_pairs", THINKING)
    renderer = Renderer(spoken, {end_of(spoken), 7})
    found = renderer.restore(call(response="yes"))
    assert isinstance(found, Tokens)
    assert found.completion[-1] == end_of(spoken)
    trimmed = tokenizer("byte_pairs", templates.NO_SYSTEM)
    unknown = Renderer(trimmed, {end_of(trimmed), 7}).restore(call(response="yes "))
    assert isinstance(unknown, Tokens)
    assert unknown.completion[-1] != end_of(trimmed), "the template closes another answer: its end is not ours"


def test_recorded_ids_are_kept_and_only_the_prompt_is_rendered() -> None:
    found = restored(call(response="yes", completion_token_ids=[5, 6, 7]))
    assert isinstance(found, Tokens)
    assert found.completion == [5, 6, 7]
    assert found.prompt == prompt_of(tokenizer("byte_pairs", THINKING), call())


@pytest.mark.parametrize(("answer", "rows"), [("yes", 1), ("<think>the sky</think>yes", 2)])
def test_thinking_that_is_stripped_from_history_forks_a_row(answer: str, rows: int) -> None:
    again = {"role": "user", "content": "hello"}
    calls = call(response=answer), call(USER, {"role": "assistant", "content": answer}, again, response="no")
    sampled: list[Sampled] = []
    for each in calls:
        found = restored(each)
        assert isinstance(found, Tokens)
        sampled.append(Sampled(found.prompt, found.completion, None, 1, each.time, retokenized=True))
    made = chain("t", sampled)
    assert len(made) == rows
    trained = [t for row in made for t, mine in zip(row.tokens, row.sampled, strict=True) if mine]
    assert trained == sampled[0].completion + sampled[1].completion
