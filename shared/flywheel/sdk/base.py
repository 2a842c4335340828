"""The recorder's calls, the same for the async and the sync face."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

from flywheel.events import TrajectoryStarted
from flywheel.ids import uuid7
from flywheel.outcomes import Rule
from flywheel.sdk.buffer import Buffer, Item, Stats
from flywheel.sdk.chance import fraction
from flywheel.sdk.core import Core, Line
from flywheel.sdk.delivery import Delivery
from flywheel.sdk.fields import (
    CompleteFields,
    EndFields,
    LLMCallFields,
    OutcomeFields,
    ProviderFields,
    RewardFields,
    StartFields,
    StepFields,
)
from flywheel.sdk.handles import StepHandle, TrajectoryHandle
from flywheel.sdk.ledger import AckLedger
from flywheel.sdk.options import Options
from flywheel.sdk.spans import NO_SPAN, open_spans
from flywheel.sdk.transport import KafkaTransport, Transport
from flywheel.settings import AgentSettings, Connections, ServiceSettings
from flywheel.stream.cluster import Cluster

#: Most open trajectories, and ended ones, that the calls by id find. Handles work for as long as they are held.
_MOST_OPEN = 10_000
_MOST_ENDED = 1_000


class BaseRecorder(Core):
    """Records what an agent sees and does, never raising nor waiting because of Flywheel itself.

    ``connect`` makes the transport; without it, events go to the Kafka at ``bootstrap``: its servers, or a
    :class:`~flywheel.stream.cluster.Cluster` where it wants TLS or a login. Every call exists on the handles and, by
    trajectory id, here; it returns whether the event was accepted.
    """

    def __init__(
        self,
        agent_id: str,
        bootstrap: Cluster | str = "127.0.0.1:9092",
        *,
        channel: str | None = None,
        options: Options | None = None,
        connect: Callable[[], Transport] | None = None,
    ) -> None:
        options = options or Options()
        super().__init__(agent_id, options, Buffer(options.buffer_events, options.buffer_bytes, self._wake))
        self.channel = channel
        self._ledger = AckLedger(options.ledger) if options.ledger is not None else None
        client_id = f"flywheel-agent-{agent_id}"
        self._delivery = Delivery(
            self._buffer, connect or (lambda: KafkaTransport(bootstrap, client_id)), self._note_ack
        )
        self._open: OrderedDict[str, TrajectoryHandle] = OrderedDict()
        self._ended: OrderedDict[str, TrajectoryHandle] = OrderedDict()
        self._registry = threading.Lock()
        self._sampled_out = 0
        self._spans = open_spans(options.tracing, options.tracing_ratio)

    @classmethod
    def from_env(cls, agent_id: str, **changes: Any) -> Self:
        """Return a recorder set up by the environment (docs/settings.md); ``changes`` are :class:`Options` set in code.

        Raises pydantic.ValidationError naming a variable that does not fit, ValueError for options that make no sense,
        FatalError naming a file of a certificate or password that cannot be used.
        """
        settings, service, connections = AgentSettings.load(), ServiceSettings.load(), Connections.load()
        traced = {"tracing": service.otel, "tracing_ratio": service.otel_ratio}
        options = replace(Options.from_settings(settings), **{**traced, **changes})
        kafka = (Cluster(connections),) if options.enabled else ()  # needs no files where nothing is sent
        return cls(agent_id, *kafka, channel=settings.channel, options=options)

    @property
    def stats(self) -> Stats:
        """What became of the events so far; exact."""
        return replace(
            self._buffer.stats(),
            sampled_out=self._sampled_out,
            connected=self._delivery.connected,
            last_error=self._delivery.last_error,
        )

    def start_trajectory(
        self, scenario_id: str, *, trajectory_id: str | None = None, **fields: Unpack[StartFields]
    ) -> TrajectoryHandle:
        """Begin a trajectory: publish its start and return its handle, which is a context manager too.

        An id that this recorder has used before is refused: the handle returned records nothing (ValueError when
        strict).
        """
        identity = str(uuid7()) if trajectory_id is None else str(trajectory_id)
        with self._registry:
            used = identity in self._open or identity in self._ended
            sampled = self.options.enabled and fraction(identity) < self.options.sampling_rate
            self._sampled_out += self.options.enabled and not sampled
            recorded = sampled and not used
            known = {"channel": self.channel, **fields, "scenario_id": scenario_id}
            span = self._spans.trajectory(self.agent_id, identity, known) if recorded else NO_SPAN
            handle = TrajectoryHandle(self, Line(identity, recorded=recorded), span)
            if not used:
                self._open[identity] = handle
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
                    self.say("open", f"more than {_MOST_OPEN} trajectories are open: the oldest is not found by id")
        if used:
            self._refused("invalid", f"trajectory {identity} was started twice")
        if sampled and not self._delivery.started:
            self.say("not started", "the recorder is not started: events wait in memory (use async with, or start())")
        handle._emit(TrajectoryStarted, known)
        return handle

    trajectory = start_trajectory

    def start_step(self, trajectory_id: str, **fields: Unpack[StepFields]) -> StepHandle:
        """Begin the trajectory's next step. See :meth:`TrajectoryHandle.start_step`."""
        handle = self._find(trajectory_id) or TrajectoryHandle(self, Line(trajectory_id, recorded=False))
        return handle.start_step(**fields)

    def complete_step(self, trajectory_id: str, **fields: Unpack[CompleteFields]) -> bool:
        """Complete the trajectory's open step. See :meth:`TrajectoryHandle.complete_step`."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.complete_step(**fields)

    def log_llm_call(self, trajectory_id: str, **fields: Unpack[LLMCallFields]) -> bool:
        """Record a call of a language model, in the open step where there is one."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.log_llm_call(**fields)

    def log_llm_call_from_openai(
        self,
        trajectory_id: str,
        response: Any,
        /,
        request: Mapping[str, Any] | None = None,
        choice: int = 0,
        **fields: Unpack[LLMCallFields],
    ) -> bool:
        """Record a call from its OpenAI-compatible answer. See :meth:`TrajectoryHandle.log_llm_call_from_openai`."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.log_llm_call_from_openai(response, request, choice, **fields)

    def log_provider_access(self, trajectory_id: str, provider: str, **fields: Unpack[ProviderFields]) -> bool:
        """Record what the agent was shown, in the open step where there is one."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.log_provider_access(provider, **fields)

    def log_reward(self, trajectory_id: str, value: float, **fields: Unpack[RewardFields]) -> bool:
        """Record a reward; for a while also after the trajectory's end."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.log_reward(value, **fields)

    def outcome(
        self, subject: str, *, source: str, scenario_id: str | None = None, window_id: str | None = None,
        rules: Sequence[Rule | Mapping[str, Any]] = (), **fields: Unpack[OutcomeFields],
    ) -> bool:  # fmt: skip
        """Publish what the world turned out to be: it judges the steps of a scenario's or a window's trajectories,
        recorded before or yet to come. One with a higher ``revision`` corrects it, with ``retracted`` takes it back.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        about = {"subject": subject, "source": source, "scenario_id": scenario_id, "window_id": window_id}
        return self.publish_outcome({**given, **about, "rules": list(rules)})

    def end_trajectory(self, trajectory_id: str, **fields: Unpack[EndFields]) -> bool:
        """Publish the trajectory's end. See :meth:`TrajectoryHandle.end`."""
        handle = self._find(trajectory_id)
        return handle is not None and handle.end(**fields)

    async def room(self) -> None:
        """Under the policy ``block``: wait until half of the buffer is free, at most ``block_timeout_s``."""

    def forget(self, handle: TrajectoryHandle) -> None:
        """A trajectory ended: it is found by id for a while longer, for rewards that come late."""
        with self._registry:
            if self._open.pop(handle.id, None) is not None:
                self._ended[handle.id] = handle
                while len(self._ended) > _MOST_ENDED:
                    self._ended.popitem(last=False)

    def _find(self, trajectory_id: str) -> TrajectoryHandle | None:
        with self._registry:
            handle = self._open.get(trajectory_id) or self._ended.get(trajectory_id)
        if handle is None and self.options.enabled:
            self._refused("unknown_trajectory", "no such trajectory was started here, or it ended long ago")
        return handle

    def _refused(self, reason: str, message: str) -> None:
        self._buffer.refuse(reason)
        if self.options.strict:
            raise ValueError(message)
        self.say(message, message)

    def _report(self, given_up: int) -> None:
        if given_up:
            self.say("exit", f"{given_up} events were not acknowledged before the recorder closed")

    def _wake(self) -> None:
        self._delivery.wake()

    def _note_ack(self, item: Item) -> None:
        if self._ledger is not None:
            self._ledger.add(item.event_id)
