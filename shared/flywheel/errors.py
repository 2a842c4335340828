"""The error taxonomy. Every failure is one of three kinds, and the kind says what happens next.

* transient: the world is briefly unfit (database down, broker moving). Retry in place; readiness goes false.
* poison: this one input can never be processed. Dead letter with the reason, then go on.
* fatal: we are wrong, or going on would do harm. Log, stop loudly with a non-zero status, let the supervisor decide.

Nothing else is raised across a component's boundary on purpose. What escapes unclassified is a bug, treated as fatal.
"""

from __future__ import annotations

from typing import Self


class FlywheelError(Exception):
    """Base of every error Flywheel raises on purpose."""


class TransientError(FlywheelError):
    """Try again later; the same input may succeed. Carries an optional hint how long to wait, in seconds."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PoisonError(FlywheelError):
    """This input can never be processed. ``reason`` is a short stable label for metrics and dead-letter headers."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def bare(self) -> Self:
        """Return the error itself without where it was raised and from what: for whoever keeps it beside its input.

        Frames hold all that was in hand. A batch that holds the error would hold itself, and be freed only when the
        garbage collector comes by.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class FatalError(FlywheelError):
    """Going on would do harm. The process ends with ``EXIT_FATAL``."""


class IntegrityError(PoisonError):
    """Stored bytes are not what their digest promises (an artifact or a batch was changed or cut short)."""

    def __init__(self, message: str) -> None:
        super().__init__("integrity", message)


#: Exit status of a service that stopped on a fatal error (EX_SOFTWARE of sysexits.h).
EXIT_FATAL = 70
