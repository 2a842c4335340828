"""Two things that aiokafka's connections do otherwise with us.

They log in with the password as its file has it now. aiokafka keeps the one that a client was made with for ever: when
it is changed, such a client would be kept out from its next connection on, until its process is restarted.

They hang up at once. To end TLS, asyncio and uvloop say goodbye and wait half a minute for an answer, and closing a
client waits for them. A broker that finds the goodbye right behind a request, in one read, gives neither answer.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection

from flywheel.errors import FatalError

_log = logging.getLogger(__name__)


class Password(str):
    """A password as aiokafka and Faust want it, whose representation does not show it. One of a file knows its file."""

    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Password:
        """Return the first line of the file. Raises FatalError when there is none."""
        try:
            text = path.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise FatalError(f"FLYWHEEL_KAFKA_PASSWORD_FILE={path} cannot be read: {error}") from error
        if not text:
            raise FatalError(f"FLYWHEEL_KAFKA_PASSWORD_FILE={path} has no password in its first line")
        password = cls(text)
        password.path = path
        return password

    def now(self) -> Password:
        """Return it as its file has it now; itself, and a word in the log, while the file cannot be read."""
        if self.path is None:
            return self
        try:
            return Password.read(self.path)
        except FatalError as error:
            _log.warning("logging in to Kafka with the password read before: %s", error)
            return self

    def __repr__(self) -> str:
        return "Password('**********')"


_handshake: Final = AIOKafkaConnection._do_sasl_handshake
_close: Final = AIOKafkaConnection.close


async def _log_in(self: AIOKafkaConnection) -> None:
    if isinstance(self._sasl_plain_password, Password):
        self._sasl_plain_password = self._sasl_plain_password.now()
    await _handshake(self)


def _hang_up(self: AIOKafkaConnection, reason: Any = None, exc: Any = None) -> Any:
    writer: Any = self._writer
    closed = _close(self, reason, exc)
    if writer is not None and self._ssl_context is not None:
        writer.transport.abort()  # the goodbye is sent; nobody needs what comes after it
    return closed


def install() -> None:
    """Have every client of this process, Faust's too, do so."""
    AIOKafkaConnection._do_sasl_handshake = _log_in
    AIOKafkaConnection.close = _hang_up
