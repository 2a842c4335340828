"""What a recorder can be told. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flywheel.settings import AgentSettings
from flywheel.topics import MAX_EVENT_BYTES


class WhenFull(StrEnum):
    """What happens to an event when the buffer is full."""

    DROP_NEWEST = "drop_newest"
    """The event is dropped; later ones of its trajectory are tried again. The trajectory has holes."""

    DROP_TRAJECTORY = "drop_trajectory"
    """The event and the rest of its trajectory are dropped, but for its end, which says how many were."""

    BLOCK = "block"
    """The agent waits for room, at most ``block_timeout_s``; then the event is dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a recorder behaves. Raises ValueError for values that make no sense: such a mistake shows at start."""

    enabled: bool = True
    """Off: nothing is recorded, handles do nothing."""

    sampling_rate: float = 1.0
    """Share of trajectories that is recorded, decided by the trajectory id, alike in every process."""

    buffer_events: int = 10_000
    """Most events in memory, those under way included. Ends of trajectories may exceed it by an eighth."""

    buffer_bytes: int = 64 * 1024 * 1024
    """Most bytes of encoded events in memory, likewise."""

    when_full: WhenFull = WhenFull.DROP_NEWEST

    block_timeout_s: float = 5.0
    """Longest wait for room under ``block``, in seconds."""

    flush_timeout_s: float = 10.0
    """Longest wait for the broker when the recorder closes, in seconds."""

    strict: bool = False
    """Raise ValueError for invalid fields instead of dropping the event. For development and tests."""

    infrastructure_errors: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError)
    """Exceptions that, when they end a trajectory, are the infrastructure's failure and not the agent's."""

    ledger: Path | None = None
    """File to which the id of every event that the broker acknowledged is appended, one a line. None: no ledger."""

    tracing: bool = False
    """Send OpenTelemetry traces: docs/tracing.md."""

    tracing_ratio: float = 1.0
    """Share of trajectories that is traced, where the agent has no tracing of its own that decides."""

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate is a share between 0 and 1, not {self.sampling_rate}")
        if not 0 <= self.tracing_ratio <= 1:
            raise ValueError(f"tracing_ratio is a share between 0 and 1, not {self.tracing_ratio}")
        if self.buffer_events < 1:
            raise ValueError(f"buffer_events is at least 1, not {self.buffer_events}")
        if self.buffer_bytes < MAX_EVENT_BYTES:
            raise ValueError(f"buffer_bytes is at least {MAX_EVENT_BYTES}, the largest event, not {self.buffer_bytes}")
        if self.block_timeout_s < 0 or self.flush_timeout_s < 0:
            raise ValueError("timeouts are not negative")
        object.__setattr__(self, "when_full", WhenFull(self.when_full))

    @classmethod
    def from_settings(cls, settings: AgentSettings) -> Options:
        """Return the options that the agent's environment asks for."""
        return cls(
            enabled=settings.enabled,
            sampling_rate=settings.sampling_rate,
            buffer_events=settings.buffer_events,
            buffer_bytes=settings.buffer_bytes,
            when_full=WhenFull(settings.when_full),
            block_timeout_s=settings.block_timeout_s,
            flush_timeout_s=settings.flush_timeout_s,
        )
