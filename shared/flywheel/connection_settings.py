"""The settings by which Kafka and the object store are found and entered, free of where settings come from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from flywheel.errors import FatalError
from flywheel.misfits import describe

PREFIX = "FLYWHEEL_"
_KAFKA = f"{PREFIX}KAFKA_"


class _Connection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Self:
        """Return what ``FLYWHEEL_…`` variables say; an empty one counts as not set. Raises FatalError naming those that
        do not fit.
        """
        names = {name: f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        try:
            return cls.model_validate({name: env[variable] for name, variable in names.items() if env.get(variable)})
        except ValidationError as error:
            raise FatalError(describe(error, PREFIX)) from error


class KafkaConnection(_Connection):
    """Where Kafka is, and how its clients get in. Part of ``Connections``; alone, for whoever configures in code."""

    kafka: str = Field(default="127.0.0.1:9092", description="bootstrap servers, host:port[,host:port]")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="what the brokers' listener speaks: `PLAINTEXT`, `SSL` (TLS), `SASL_PLAINTEXT` (logging in) or "
        "`SASL_SSL` (both)",
    )
    kafka_sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = Field(
        default="SCRAM-SHA-512", description="how to log in: `SCRAM-SHA-512`, `SCRAM-SHA-256` or `PLAIN`"
    )
    kafka_user: str | None = Field(default=None, description="who logs in")
    kafka_password: SecretStr | None = Field(default=None, description="the password")
    kafka_password_file: Path | None = Field(
        default=None, description="file with the password instead; read again at every connection"
    )
    kafka_ca: Path | None = Field(
        default=None,
        description="PEM file with the certificates of those who sign the brokers', or a folder of such files, `*.crt` "
        "and `*.pem`; none: whom the system trusts",
    )
    kafka_cert_file: Path | None = Field(
        default=None, description="PEM file with our own certificate, for brokers that ask for one"
    )
    kafka_key_file: Path | None = Field(default=None, description="PEM file with its key, not encrypted")
    kafka_check_hostname: bool = Field(
        default=True, description="whether a broker's certificate must be for the name that we reach it by"
    )

    @property
    def speaks_tls(self) -> bool:
        """Whether connections to the brokers are encrypted."""
        return self.kafka_security_protocol in ("SSL", "SASL_SSL")

    @property
    def logs_in(self) -> bool:
        """Whether connections to the brokers begin with a user and a password."""
        return self.kafka_security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse what would be ignored: whoever set a password believes that it protects something."""
        protocol = f"{_KAFKA}SECURITY_PROTOCOL={self.kafka_security_protocol}"
        if self.logs_in:
            if not self.kafka_user or not (self.kafka_password or self.kafka_password_file):
                raise ValueError(f"{protocol} needs {_KAFKA}USER, and {_KAFKA}PASSWORD or {_KAFKA}PASSWORD_FILE")
            if self.kafka_password and self.kafka_password_file:
                raise ValueError(f"{_KAFKA}PASSWORD and {_KAFKA}PASSWORD_FILE are both set: keep one")
        elif ignored := self._given("user", "password", "password_file"):
            raise ValueError(f"{protocol} does not log in, but {ignored} is set: choose SASL_SSL, or take that away")
        if not self.speaks_tls and (ignored := self._given("ca", "cert_file", "key_file", "check_hostname")):
            raise ValueError(f"{protocol} is without TLS, but {ignored} is set: choose SASL_SSL, or take that away")
        if (self.kafka_cert_file is None) != (self.kafka_key_file is None):
            raise ValueError(f"{_KAFKA}CERT_FILE and {_KAFKA}KEY_FILE belong together: set both or none")
        return self

    def _given(self, *names: str) -> str:
        """Return which of these settings are not at their default, by their variables."""
        fields = type(self).model_fields
        return ", ".join(
            f"{_KAFKA}{name.upper()}"
            for name in names
            if getattr(self, f"kafka_{name}") != fields[f"kafka_{name}"].default
        )


class S3Connection(_Connection):
    """Where the object store is, and who we are there. Part of ``Connections``."""

    s3: str = Field(default="http://127.0.0.1:9000", description="endpoint URL of any S3 server, http or https")
    s3_access_key: str = Field(default="flywheel", description="access key")
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="secret key")
    s3_bucket: str = Field(default="flywheel", description="bucket; created on start where it is missing and may be")
    s3_region: str = Field(default="us-east-1", description="region used in signatures")
    s3_ca: Path | None = Field(
        default=None,
        description="https: PEM file, or folder, as for Kafka, of who signs the server's certificate; none: whom the "
        "system trusts",
    )
