"""The calls that a trajectory and a step have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from flywheel.events import LLMCall, ProviderAccess, Reward
from flywheel.sdk.core import Line
from flywheel.sdk.fields import AccessFields, LLMCallFields, ProviderFields, RewardFields
from flywheel.sdk.openai import fields_from_openai
from flywheel.sdk.spans import Span
from flywheel.sdk.watched import LLMWatch, ProviderWatch

if TYPE_CHECKING:
    from flywheel.sdk.base import BaseRecorder


class Calls:
    """Logs to one trajectory, in the step that :meth:`_step_number` names."""

    _recorder: BaseRecorder
    _line: Line
    _span: Span

    def _step_number(self) -> int | None:
        raise NotImplementedError

    def _emit(self, kind: type[Any], fields: Mapping[str, Any], span: Span | None = None) -> bool:
        """Publish an event; ``span`` is its own, where it had one while it happened."""
        return self._recorder.emit(self._line, kind, fields, (span or self._span.happened(kind, fields)).headers)

    def log_llm_call(self, **fields: Unpack[LLMCallFields]) -> bool:
        """Record a call of a language model; return whether the event was accepted."""
        return self._emit(LLMCall, {"step": self._step_number(), **fields})

    def log_llm_call_from_openai(
        self,
        response: Any,
        /,
        request: Mapping[str, Any] | None = None,
        choice: int = 0,
        **fields: Unpack[LLMCallFields],
    ) -> bool:
        """Record a call from its OpenAI-compatible answer, dict or object, and the keywords it was asked with.

        ``fields`` add to what the answer holds, and override it. See :func:`flywheel.sdk.openai.fields_from_openai`.
        """
        return self._emit(
            LLMCall, {"step": self._step_number(), **self._from_openai(response, request, choice), **fields}
        )

    def _from_openai(self, response: Any, request: Mapping[str, Any] | None, choice: int) -> dict[str, Any]:
        try:
            return fields_from_openai(response, request, choice)
        except Exception as error:
            if self._recorder.options.strict:
                raise
            self._recorder.say(f"openai {error!r}", f"not an OpenAI-compatible answer: {error!r}")
            return {}

    def log_provider_access(self, provider: str, **fields: Unpack[ProviderFields]) -> bool:
        """Record what a data provider, tool or memory showed the agent; return whether the event was accepted."""
        return self._emit(ProviderAccess, {"step": self._step_number(), "provider": provider, **fields})

    def log_reward(self, value: float, **fields: Unpack[RewardFields]) -> bool:
        """Record a reward that is not the step's own; an ``outcome`` unless ``reward_kind`` says otherwise.

        The kinds ``immediate`` and ``outcome`` add to the total reward, the others do not.
        """
        return self._emit(Reward, {"step": self._step_number(), "reward_kind": "outcome", "value": value, **fields})

    def provider(
        self, provider: str, query: Mapping[str, Any] | None = None, **fields: Unpack[AccessFields]
    ) -> ProviderWatch:
        """Return a context that records the access when it is left, with its latency, and also when it raises.

        ``async with step.provider("news", {"topic": "x"}) as p: p.data = await fetch()``
        """
        known = {"step": self._step_number(), "provider": provider, "query": query, **fields}
        return ProviderWatch(self._emit, self._span, known)

    def llm_call(self, **fields: Unpack[LLMCallFields]) -> LLMWatch:
        """Return a context that records the call when it is left, with its latency, and also when it raises.

        ``async with step.llm_call() as call: call.answered(await client.chat.completions.create(**request), request)``
        """
        return LLMWatch(
            self._emit, self._span, self._from_openai, self._recorder.failure_of,
            {"step": self._step_number(), **fields},
        )  # fmt: skip
