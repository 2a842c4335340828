"""What an agent says of the versions it was told to run, on ``flywheel.acks``; delivered in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from flywheel.messages import Ack, ModelUpdate
from flywheel.sdk.buffer import Buffer, Item
from flywheel.sdk.delivery import Delivery
from flywheel.sdk.spans import NO_HEADERS
from flywheel.sdk.transport import Transport
from flywheel.topics import ACKS

_log = logging.getLogger("flywheel.sdk")

#: Acknowledgements that may wait for the broker. An agent that cannot say 1000 of them has other troubles.
_MOST = 1000
_MOST_BYTES = 4 * 1024 * 1024


class Acknowledgements:
    """Sends each acknowledgement until the broker has it. Saying one never waits."""

    def __init__(self, agent_id: str, channel: str, connect: Callable[[], Transport]) -> None:
        self._agent_id = agent_id
        self._channel = channel
        self._buffer = Buffer(_MOST, _MOST_BYTES, lambda: self._delivery.wake())
        self._delivery = Delivery(self._buffer, connect)

    def start(self) -> None:
        """Begin to deliver, in the running event loop."""
        self._delivery.start()

    async def close(self, timeout_s: float) -> None:
        """Send what is left, for at most ``timeout_s`` and a second."""
        if unsent := await self._delivery.close(timeout_s):
            _log.warning("%d acknowledgements of agent %s were not delivered", unsent, self._agent_id)

    def loaded(self, update: ModelUpdate, load_seconds: float, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Say that the version plays now."""
        about = self._about(update, status="loaded", running_version=update.version, load_seconds=load_seconds)
        self._say(about, headers)

    def failed(
        self, update: ModelUpdate, error: str, running_version: str | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Say that the version cannot be taken, why, and what plays instead."""
        self._say(self._about(update, status="failed", running_version=running_version, error=error), headers)

    def _about(self, update: ModelUpdate, **fields: object) -> Ack:
        about = {"deployment_id": update.deployment_id, "version": update.version}
        return Ack.model_validate({"agent_id": self._agent_id, "channel": self._channel, **about, **fields})

    def _say(self, ack: Ack, headers: Mapping[str, str]) -> None:
        if self._buffer.offer(Item(ACKS.name, self._agent_id, ack.dump(), headers=headers)) is not None:
            _log.warning("an acknowledgement of version %s is dropped: too many wait", ack.version)
