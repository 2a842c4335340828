"""The recorder's core: numbers, encodes, counts and buffers events. Both faces share it; neither it nor they do any
I/O here.

Its promise to the agent: no call raises or waits because of Flywheel. An event with invalid fields is dropped and
counted, one that finds the buffer full is treated as the chosen policy says. Every event takes its ``seq`` before
anything can happen to it, so that whatever is dropped leaves a hole that the reader sees.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import ValidationError

from flywheel.errors import PoisonError
from flywheel.events import Envelope, Event, Failure, TrajectoryEnded, dump
from flywheel.ids import uuid7
from flywheel.outcomes import Outcome
from flywheel.sdk.buffer import Buffer, Item
from flywheel.sdk.options import Options, WhenFull
from flywheel.sdk.plain import plain, plain_array, without_nul
from flywheel.sdk.spans import NO_HEADERS
from flywheel.topics import EVENTS, MAX_EVENT_BYTES, OUTCOMES

_log = logging.getLogger("flywheel.sdk")

#: Most different complaints that are logged; a loop of fresh ones must not flood the agent's log.
_COMPLAINTS = 100
_OURS = frozenset({"event_id", "trajectory_id", "seq", "agent_id", "schema_version", "kind"})


class Line:
    """The line of events of one trajectory: its next ``seq``, and what was dropped from it."""

    __slots__ = ("dropped", "lock", "next_seq", "recorded", "trajectory_id", "truncated")

    def __init__(self, trajectory_id: str, *, recorded: bool) -> None:
        self.trajectory_id = trajectory_id
        self.recorded = recorded
        self.next_seq = 0
        self.truncated = False
        self.dropped: Counter[str] = Counter()
        self.lock = threading.RLock()


class Core:
    """What a recorder does between the agent's call and the buffer. Any thread may call it."""

    def __init__(self, agent_id: str, options: Options, buffer: Buffer) -> None:
        self.agent_id = agent_id
        self.options = options
        self._buffer = buffer
        self._pid = os.getpid()
        self._said: set[str] = set()

    #: Whether a call may wait for room under the policy ``block``. Never where it would hold up an event loop.
    _may_wait = False

    def emit(
        self, line: Line, kind: type[Envelope], fields: Mapping[str, Any], headers: Mapping[str, str] = NO_HEADERS
    ) -> bool:
        """Number, encode and buffer one event; return whether it was accepted. Raises ValueError only when strict."""
        if not line.recorded:
            return False
        if self._pid != os.getpid():
            self.say("forked", "a recorder does not work in a forked child; make one there. Its events are dropped")
            return False
        with line.lock:
            seq, line.next_seq = line.next_seq, line.next_seq + 1
            reason = self._offer(line, seq, kind, fields, headers)
            if reason is None:
                return True
            line.dropped[reason] += 1
            if reason == "buffer_full" and self.options.when_full is WhenFull.DROP_TRAJECTORY:
                line.truncated = True
            self.say(reason, f"events are dropped: {reason}; the counters in recorder.stats say how many")
            return False

    def _offer(
        self, line: Line, seq: int, kind: type[Envelope], fields: Mapping[str, Any], headers: Mapping[str, str]
    ) -> str | None:
        final = kind is TrajectoryEnded
        if line.truncated and not final:
            self._buffer.refuse("trajectory_dropped")
            return "trajectory_dropped"
        if final and line.dropped:
            fields = {**fields, "dropped": dict(line.dropped)}
        try:
            event_id, value = self._encode(line.trajectory_id, seq, kind, fields)
        except Exception as error:
            self._buffer.refuse("invalid")
            why = f"an invalid {kind.__name__} is dropped: {_why(error)}"
            if self.options.strict:
                raise ValueError(why) from error
            self.say(why, why)
            return "invalid"
        if len(value) > MAX_EVENT_BYTES:
            self._buffer.refuse("too_large")
            return "too_large"
        wait_s = self.options.block_timeout_s if self._may_wait and self.options.when_full is WhenFull.BLOCK else 0.0
        item = Item(EVENTS.name, line.trajectory_id, value, event_id, final, headers)
        return self._buffer.offer(item, wait_s=wait_s)

    def _encode(
        self, trajectory_id: str, seq: int, kind: type[Envelope], fields: Mapping[str, Any]
    ) -> tuple[str, bytes]:
        present = {name: plain_array(value) for name, value in fields.items() if value is not None}
        if ours := _OURS & present.keys():
            raise ValueError(f"{', '.join(sorted(ours))}: set by the recorder alone")
        for name in present.keys() - kind.model_fields.keys():
            self.say(f"extra {kind.__name__}.{name}", f"{kind.__name__} has no field {name!r}: kept as an extra one")
        present.setdefault("time", datetime.now(UTC))
        event_id = uuid7()
        event = kind(**present, event_id=event_id, trajectory_id=trajectory_id, seq=seq, agent_id=self.agent_id)
        return str(event_id), without_nul(dump(cast(Event, event), fallback=plain))

    def publish_outcome(self, fields: Mapping[str, Any]) -> bool:
        """Check, encode and buffer one outcome; return whether it was accepted. Raises ValueError only when strict."""
        if not self.options.enabled:
            return False
        try:
            outcome_id = uuid7()
            outcome = Outcome(**{"time": datetime.now(UTC), **fields}, outcome_id=outcome_id)
            value = outcome.model_dump_json(exclude_none=True, fallback=plain).encode()
            Outcome.parse(value)
        except Exception as error:
            large = isinstance(error, PoisonError) and error.reason == "too_large"
            self._buffer.refuse("too_large" if large else "invalid")
            why = f"an invalid outcome is dropped: {_why(error)}"
            if self.options.strict:
                raise ValueError(why) from error
            self.say(why, why)
            return False
        item = Item(OUTCOMES.name, outcome.key, value, str(outcome_id), final=True)
        return self._buffer.offer(item) is None

    def say(self, key: str, message: str) -> None:
        """Log a warning, once per ``key``."""
        if key not in self._said and len(self._said) < _COMPLAINTS:
            self._said.add(key)
            _log.warning("%s (agent %s)", message, self.agent_id)

    def failure_of(self, error: BaseException) -> Failure:
        """Return whose failure an exception is."""
        ours = isinstance(error, self.options.infrastructure_errors)
        return Failure.INFRASTRUCTURE if ours else Failure.AGENT


def _why(error: Exception) -> str:
    """Return what is wrong with which field, without the field's contents."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in details[:3])
