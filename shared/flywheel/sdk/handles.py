"""What an agent holds in its hand: a trajectory, and a step in it.

Each is a context manager, plain and async alike. Plain calls never wait; under the policy ``block`` the async
contexts wait for room when they are entered and left, and the sync face waits in every call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from flywheel.events import Step, TrajectoryEnded
from flywheel.sdk.calls import Calls
from flywheel.sdk.core import Line
from flywheel.sdk.fields import CompleteFields, EndFields, StepFields
from flywheel.sdk.plain import frozen
from flywheel.sdk.spans import NO_SPAN, Span

if TYPE_CHECKING:
    from flywheel.sdk.base import BaseRecorder

T = TypeVar("T")


class StepHandle(Calls):
    """One turn. Its event is published when it is completed, at the latest when its context or its trajectory ends."""

    def __init__(
        self, recorder: BaseRecorder, line: Line, number: int, fields: Mapping[str, Any], within: Span
    ) -> None:
        self._recorder = recorder
        self._line = line
        self._span = within.opened(Step, fields)
        self.number = number
        self.completed = False
        self._fields: dict[str, Any] = {"started_at": datetime.now(UTC), **frozen(fields)}

    def _step_number(self) -> int:
        return self.number

    async def record_action(self, name: str, parameters: Mapping[str, Any] | None, work: Awaitable[T]) -> T:
        """Await ``work``, note it as this step's action with what came of it, and return its result.

        When it raises, the action is noted as failed and the exception goes on.
        """
        try:
            result = await work
        except BaseException as error:
            self._note_action(name, parameters, error=error)
            raise
        self._note_action(name, parameters, result=result)
        return result

    def run_action(self, name: str, parameters: Mapping[str, Any] | None, work: Callable[[], T]) -> T:
        """Do the same as :meth:`record_action` with a plain function."""
        try:
            result = work()
        except BaseException as error:
            self._note_action(name, parameters, error=error)
            raise
        self._note_action(name, parameters, result=result)
        return result

    def complete(self, **fields: Unpack[CompleteFields]) -> bool:
        """Publish the step; return whether the event was accepted. A second time it does nothing.

        ``action`` may be its name alone; without it, the one noted by :meth:`record_action` counts.
        """
        with self._line.lock:
            if self.completed:
                self._recorder.say("completed twice", "a step was completed twice; the first time counts")
                return False
            self.completed = True
            given = {name: value for name, value in fields.items() if value is not None}
            if isinstance(given.get("action"), str):
                given["action"] = {"name": given["action"]}
            whole = {**self._fields, **given, "step": self.number}
            self._span.end(whole)
            return self._emit(Step, whole)

    def fail(self, error: BaseException) -> bool:
        """Publish the step as one whose action failed with ``error``, unless it is completed."""
        if self.completed:
            return False
        self._span.failed(error)
        action = self._fields.get("action") or {"name": "error", "parameters": {}}
        return self.complete(action={**action, "success": False, "error": _text(error)})

    def _note_action(
        self, name: str, parameters: Mapping[str, Any] | None, result: Any = None, error: BaseException | None = None
    ) -> None:
        action = {"name": name, "parameters": dict(parameters or {}), "success": error is None}
        action |= {"result": result} if error is None else {"error": _text(error)}
        self._fields["action"] = frozen(action)

    def __enter__(self) -> Self:
        self._span.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.leave()
        if error is not None:
            self.fail(error)
        elif not self.completed:
            self.complete()

    async def __aenter__(self) -> Self:
        await self._recorder.room()
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
        await self._recorder.room()


class TrajectoryHandle(Calls):
    """One attempt at one scenario, from its start event, already published, to its end."""

    def __init__(self, recorder: BaseRecorder, line: Line, span: Span = NO_SPAN) -> None:
        self._recorder = recorder
        self._line = line
        self._span = span
        self._steps = 0  # begun so far
        self._open: StepHandle | None = None
        self.ended = False

    @property
    def id(self) -> str:
        """The trajectory's id."""
        return self._line.trajectory_id

    @property
    def recorded(self) -> bool:
        """Whether its events are recorded at all: the recorder is on and sampling took it."""
        return self._line.recorded

    def start_step(self, **fields: Unpack[StepFields]) -> StepHandle:
        """Begin the next step; one that is still open is published as it is."""
        with self._line.lock:
            self._close_step()
            self._open = StepHandle(self._recorder, self._line, self._steps, fields, self._span)
            self._steps += 1
            return self._open

    step = start_step

    def complete_step(self, **fields: Unpack[CompleteFields]) -> bool:
        """Complete the open step, or one begun just now; return whether the event was accepted."""
        with self._line.lock:
            step = self._open if self._open and not self._open.completed else self.start_step()
            return step.complete(**fields)

    def end(self, **fields: Unpack[EndFields]) -> bool:
        """Publish the end, ``completed`` unless ``status`` says otherwise. A second time it does nothing.

        Rewards that become known later may still be logged.
        """
        with self._line.lock:
            if self.ended:
                self._recorder.say("ended twice", "a trajectory was ended twice; the first time counts")
                return False
            self._close_step()
            self.ended = True
            self._recorder.forget(self)
            self._span.end(fields)
            return self._emit(TrajectoryEnded, fields)

    def fail(self, error: BaseException) -> bool:
        """End the trajectory because of ``error``, unless it has ended.

        Status ``error`` with whose failure it was; ``terminated`` when the agent was interrupted (cancelled, Ctrl-C).
        """
        if self.ended:
            return False
        self._span.failed(error)
        if isinstance(error, Exception):
            failure = self._recorder.failure_of(error)
            return self.end(status="error", failure=failure, error=_text(error))
        return self.end(status="terminated", error=_text(error))

    def _step_number(self) -> int | None:
        return self._open.number if self._open and not self._open.completed else None

    def _close_step(self) -> None:
        if self._open is not None and not self._open.completed:
            self._open.complete()

    def __enter__(self) -> Self:
        self._span.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.leave()
        if error is not None:
            if self._open is not None:
                self._open.fail(error)
            self.fail(error)
        elif not self.ended:
            self.end()

    async def __aenter__(self) -> Self:
        await self._recorder.room()
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
        await self._recorder.room()


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
