"""Token ids of calls of which only text was recorded, by the model's own tokenizer and chat template.

What a server does is done again: it renders the prompt with the template, tools included, and samples right behind it.
So a prompt's ids are those of its rendering, and the sampled ones those by which prompt and response together go on.
That is only believed where

* no token reaches over the boundary between prompt and response,
* the sampled ids, read back, are the recorded response to the letter, and hold no control token,
* the counts of tokens that the engine reported, where it did, are these counts.

Everything else is refused with its reason. What nobody can see in text is a response that the model spelt with other
tokens than the tokenizer would, and as many: such a call is trained on in the tokenizer's spelling.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from flywheel.events import LLMCall, Message
from services.trainer.calls import CallDropped, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: What transformers gives templates to read the clock with: what they rendered then is not what they render now.
_CLOCK = "strftime_now"

#: What a template raises over messages that it was not written for.
_TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class _RefusedError(Exception):
    """The call's ids cannot be told."""

    def __init__(self, reason: CallDropped) -> None:
        super().__init__(reason)
        self.reason = reason


class Renderer:
    """Restores the ids of calls. ``ends`` are the tokens at which generation stops by itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._control = frozenset(tokenizer.all_special_ids) | self._ends

    def restore(self, call: LLMCall) -> Tokens | CallDropped:
        """Return the ids of ``call``, those that were recorded as they are, or why they cannot be told."""
        try:
            return self._restore(call)
        except _RefusedError as refused:
            return refused.reason

    def _restore(self, call: LLMCall) -> Tokens:
        messages = _messages(call)
        text = self._render(messages, call, add_generation_prompt=True)
        rendered = self._ids(text)
        prompt = call.prompt_token_ids or rendered
        if not rendered or prompt != rendered:
            raise _RefusedError(CallDropped.OTHER_PROMPT)
        if call.usage.prompt_tokens not in (None, len(prompt)):
            raise _RefusedError(CallDropped.OTHER_COUNT)
        if call.completion_token_ids:
            return Tokens(prompt, call.completion_token_ids)
        return Tokens(prompt, self._completion(call, messages, text, prompt))

    def _completion(self, call: LLMCall, messages: list[dict[str, Any]], text: str, prompt: list[int]) -> list[int]:
        if call.reasoning or call.tool_calls:
            raise _RefusedError(CallDropped.PARSED)  # a server took the text apart: how it stood there is lost
        response = call.response
        if response is None:
            raise _RefusedError(CallDropped.NO_RESPONSE)
        whole = self._ids(text + response)
        if whole[: len(prompt)] != prompt:
            raise _RefusedError(CallDropped.MERGED)
        sampled = whole[len(prompt) :]
        if self._control.intersection(sampled):
            raise _RefusedError(CallDropped.CONTROL)
        # Some tokenizers drop or add a blank where a text begins: then the whole, read back, must tell.
        if self._text(sampled) != response and self._text(whole) != self._text(prompt) + response:
            raise _RefusedError(CallDropped.NOT_EXACT)
        return self._with_end(call, messages, text + response, whole, sampled)

    def _with_end(
        self, call: LLMCall, messages: list[dict[str, Any]], text: str, whole: list[int], sampled: list[int]
    ) -> list[int]:
        """Add the end token where the model certainly sampled it."""
        counts = {call.usage.completion_tokens, len(call.completion_logprobs or []) or None} - {None}
        if len(counts) > 1 or not counts <= {len(sampled), len(sampled) + 1}:
            raise _RefusedError(CallDropped.OTHER_COUNT)
        ended = counts == {len(sampled) + 1} if counts else call.finish_reason == "stop" and not call.sampling.stop
        end = self._end(call, messages, text, whole) if ended else None
        if end is None and counts == {len(sampled) + 1}:
            raise _RefusedError(CallDropped.OTHER_COUNT)  # one token more, and it is not known to be an end
        completion = sampled if end is None else [*sampled, end]
        if not completion:
            raise _RefusedError(CallDropped.NO_RESPONSE)
        return completion

    def _end(self, call: LLMCall, messages: list[dict[str, Any]], text: str, whole: list[int]) -> int | None:
        if len(self._ends) == 1:
            return next(iter(self._ends))
        # Several are possible. The template knows which one ends a turn, if it leaves the response as it was.
        answer = {"role": "assistant", "content": call.response}
        try:
            closed = self._render([*messages, answer], call, add_generation_prompt=False)
        except _RefusedError:
            return None
        ids = self._ids(closed)
        if not closed.startswith(text) or ids[: len(whole)] != whole:
            return None
        return next((token for token in ids[len(whole) : len(whole) + 1] if token in self._ends), None)

    def _render(self, messages: list[dict[str, Any]], call: LLMCall, *, add_generation_prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise _RefusedError(CallDropped.NO_TEMPLATE)
        if _CLOCK in str(self._tokenizer.chat_template):
            raise _RefusedError(CallDropped.CLOCK)
        tools: Any = call.tools or None
        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except _TEMPLATE_ERRORS as error:
            raise _RefusedError(CallDropped.REFUSED) from error
        return rendered

    def _ids(self, text: str) -> list[int]:
        try:
            # The template has written the special tokens itself.
            return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises nothing narrower at characters that it lacks
            raise _RefusedError(CallDropped.NOT_SPELT) from error

    def _text(self, ids: list[int]) -> str:
        text: Any = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _messages(call: LLMCall) -> list[dict[str, Any]]:
    """Return the prompt as messages. A user prompt alone may have been fed as it is, without a template."""
    if call.messages:
        return [_message(message) for message in call.messages]
    if call.system_prompt is not None and call.user_prompt is not None:
        return [{"role": "system", "content": call.system_prompt}, {"role": "user", "content": call.user_prompt}]
    raise _RefusedError(CallDropped.NO_MESSAGES)


def _message(message: Message) -> dict[str, Any]:
    """Return a message as servers hand it to the template: one text, and arguments of tool calls as objects."""
    if isinstance(message.content, list):
        raise _RefusedError(CallDropped.NOT_TEXT)  # servers join parts in different ways
    plain: dict[str, Any] = message.model_dump(mode="json", exclude_none=True)
    plain["content"] = message.content or ""
    for tool_call in plain.get("tool_calls", []):
        function = tool_call["function"]
        if isinstance(arguments := function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(arguments)
            except (ValueError, RecursionError):
                continue  # the model wrote no JSON: the template gets what it wrote
    return plain
