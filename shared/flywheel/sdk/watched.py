"""Contexts that record what was done in them, also when it raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from flywheel.events import Failure, LLMCall, ProviderAccess
from flywheel.sdk.spans import NO_SPAN, Span

_Emit = Callable[[type[Any], Mapping[str, Any], Span], bool]


class _Watch:
    """Measures the time from entering to leaving; sync and async. What is recorded can be set on the way."""

    _kind: type[LLMCall] | type[ProviderAccess]

    def __init__(self, emit: _Emit, within: Span, fields: Mapping[str, Any]) -> None:
        self._emit = emit
        self._within = within
        self._span = NO_SPAN
        self._fields = dict(fields)
        self._began = time.perf_counter()

    def set(self, **fields: Any) -> None:
        """Add fields to what will be recorded, or change them."""
        self._fields.update(fields)

    def _failed(self, error: BaseException) -> None:
        self._fields["error"] = f"{type(error).__name__}: {error}"

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._span = self._within.opened(self._kind, self._fields)
        self._span.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.leave()
        if error is not None:
            self._failed(error)
            self._span.failed(error)
        if self._fields.get("latency_ms") is None:
            self._fields["latency_ms"] = (time.perf_counter() - self._began) * 1000
        self._span.end(self._fields)
        self._emit(self._kind, self._fields, self._span)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class ProviderWatch(_Watch):
    """An access to a data provider, tool or memory under way. Set ``data`` to what it showed."""

    _kind = ProviderAccess

    @property
    def data(self) -> Any:
        """What the agent was shown."""
        return self._fields.get("data")

    @data.setter
    def data(self, value: Any) -> None:
        self._fields["data"] = value


class LLMWatch(_Watch):
    """A call of a language model under way. Give it the answer (:meth:`answered`) or the fields (:meth:`set`)."""

    _kind = LLMCall

    def __init__(
        self,
        emit: _Emit,
        within: Span,
        read: Callable[[Any, Mapping[str, Any] | None, int], dict[str, Any]],
        failure_of: Callable[[BaseException], Failure],
        fields: Mapping[str, Any],
    ) -> None:
        super().__init__(emit, within, fields)
        self._read = read
        self._failure_of = failure_of

    def answered(self, response: Any, request: Mapping[str, Any] | None = None, choice: int = 0) -> None:
        """Take the fields from an OpenAI-compatible answer; those already given stay."""
        given = {name: value for name, value in self._fields.items() if value is not None}
        self._fields = {**self._read(response, request, choice), **given}

    def _failed(self, error: BaseException) -> None:
        super()._failed(error)
        if isinstance(error, Exception):
            self._fields["failure"] = self._failure_of(error)
