"""Logs in with the password as its file has it now. aiokafka keeps the one that a client was made with for ever: when
it is changed, such a client would be kept out from its next connection on, until its process is restarted.
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


async def _with_todays_password(connection: Any) -> None:
    if isinstance(connection._sasl_plain_password, Password):
        connection._sasl_plain_password = connection._sasl_plain_password.now()
    await _handshake(connection)


def install() -> None:
    """Have every client of this process, Faust's too, log in this way."""
    AIOKafkaConnection._do_sasl_handshake = _with_todays_password  # pyright: ignore[reportAttributeAccessIssue]
