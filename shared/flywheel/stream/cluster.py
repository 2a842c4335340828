"""A Kafka cluster and the way into it: what every client of ours is given, so that all of them come in alike.

    kafka = Cluster(Connections.load())
    Producer(kafka)

Functions that take a cluster take its bootstrap servers as text too, where anybody may come in.
"""

from __future__ import annotations

import ssl
from typing import Any

from flywheel.connection_settings import KafkaConnection
from flywheel.stream import _connection
from flywheel.tls import Files, RenewingContext

_connection.install()


class Cluster:
    """Where the brokers are, and who we are there. Made once a process. Its text shows no password.

    Raises FatalError naming the file, when one that the settings name cannot be used.
    """

    def __init__(self, settings: KafkaConnection) -> None:
        self.settings = settings
        self._tls = self._context() if settings.speaks_tls else None
        self._password = self._first_password() if settings.logs_in else None

    @classmethod
    def of(cls, kafka: Cluster | str) -> Cluster:
        """Return the cluster itself, or one at these bootstrap servers that lets anybody in."""
        return kafka if isinstance(kafka, Cluster) else cls(KafkaConnection(kafka=kafka))

    @property
    def servers(self) -> str:
        """The bootstrap servers."""
        return self.settings.kafka

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What TLS is spoken with, None without TLS."""
        return self._tls

    @property
    def password(self) -> str | None:
        """What we log in with, None where we do not."""
        return self._password

    def arguments(self) -> dict[str, Any]:
        """Return how any of aiokafka's clients gets in, without the servers themselves."""
        found: dict[str, Any] = {"security_protocol": self.settings.kafka_security_protocol, "ssl_context": self._tls}
        if self.settings.logs_in:
            found |= {
                "sasl_mechanism": self.settings.kafka_sasl_mechanism,
                "sasl_plain_username": self.settings.kafka_user,
                "sasl_plain_password": self._password,
            }
        return found

    def __str__(self) -> str:
        who = f" as {self.settings.kafka_user}" if self.settings.logs_in else ""
        return f"{self.servers}{who}"

    def __repr__(self) -> str:
        return f"Cluster({str(self)!r}, {self.settings.kafka_security_protocol})"

    def _context(self) -> ssl.SSLContext:
        settings = self.settings
        files = Files(settings.kafka_ca, settings.kafka_cert_file, settings.kafka_key_file)
        return RenewingContext(files, check_hostname=settings.kafka_check_hostname)

    def _first_password(self) -> _connection.Password:
        said, path = self.settings.kafka_password, self.settings.kafka_password_file
        if said is not None:
            return _connection.Password(said.get_secret_value())
        assert path is not None  # the settings see to it
        return _connection.Password.read(path)
