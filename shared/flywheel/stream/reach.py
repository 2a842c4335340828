"""Says why a cluster cannot be reached. aiokafka's clients say only that it cannot; what a broker said, or TLS, they
keep to their log.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from flywheel.errors import FatalError, FlywheelError, TransientError
from flywheel.stream._kafka import mapped
from flywheel.stream.cluster import Cluster

_PATIENCE_S = 5.0
_SET = "FLYWHEEL_KAFKA_"
#: OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_OTHER_NAME = (62, 64)
#: How a TLS alert begins. Who speaks plainly to a TLS listener gets one, and takes it for the length of an answer.
_ALERT = 0x1503


@asynccontextmanager
async def reaching(kafka: Cluster) -> AsyncIterator[None]:
    """Turn what Kafka's clients raise within into an error of :mod:`flywheel.errors` that says why."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise await cause(kafka, error) from error


async def cause(kafka: Cluster, error: KafkaError | OSError) -> FlywheelError:
    """Return what ``error`` means; where it only says that no broker could be reached, knock again and hear why."""
    if not isinstance(error, OSError | KafkaConnectionError):
        return mapped(error)
    try:
        await knock(kafka)
    except FlywheelError as known:
        return known
    return TransientError(f"no Kafka broker at {kafka.servers}: {error}")


async def why_silent(kafka: Cluster) -> str:
    """Return why no broker answers clients that were let in before, nothing where one does answer now.

    Raises FatalError when one refuses us by now: a client that loses its connections would try again for ever.
    """
    try:
        await knock(kafka)
    except TransientError as error:
        return str(error)
    return ""


async def knock(kafka: Cluster) -> None:
    """Go in as our clients do: to a bootstrap server, and to the brokers that it names.

    Raises FatalError, with what to do, when one refuses us or is not who it should be; TransientError when no bootstrap
    server answers.
    """
    silent: list[str] = []
    for host, port, _ in collect_hosts(kafka.servers):
        try:
            named = await _go_in(kafka, host, port)
        except TransientError as error:
            silent.append(str(error))
            continue
        results = await asyncio.gather(*(_go_in(kafka, *at) for at in named), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, TransientError):
                raise result
        return
    raise TransientError(f"no Kafka broker at {kafka.servers}: {'; '.join(silent)}")


async def _go_in(kafka: Cluster, host: str, port: int) -> list[tuple[str, int]]:
    """Connect, log in, and return where the brokers say that they are."""
    at = f"{host}:{port}"
    connection: AIOKafkaConnection | None = None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            connection = await create_conn(host, port, client_id="flywheel-knock", **kafka.arguments())
            metadata: Any = await connection.send(MetadataRequest([]))
    except (KafkaError, OSError) as error:
        raise _refusal(kafka, at, error) or TransientError(f"{at}: {_in_words(kafka, error)}") from error
    finally:
        if connection is not None:
            connection.close()
    return [(broker[1], broker[2]) for broker in metadata.brokers]


def _refusal(kafka: Cluster, at: str, error: KafkaError | OSError) -> FatalError | None:
    """Return what nobody but a person can mend, in words; None for what may pass by itself."""
    settings = kafka.settings
    under = error.__cause__
    if isinstance(error, SaslAuthenticationFailed):
        where = settings.kafka_password_file or f"{_SET}PASSWORD"
        text = f"refuses {settings.kafka_user}: {error}; {_SET}USER and {where} must be as it knows them"
    elif isinstance(error, UnsupportedSaslMechanismError):
        text = f"does not take {settings.kafka_sasl_mechanism}; set {_SET}SASL_MECHANISM to one that it does"
    elif isinstance(error, IllegalSaslStateError):
        instead = "SSL" if settings.speaks_tls else "PLAINTEXT"
        text = f"lets nobody log in; use another listener, or {_SET}SECURITY_PROTOCOL={instead}"
    elif isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OTHER_NAME:
            text = f"is not who it should be: {error.verify_message} Reach it by a name that its certificate is for"
        else:
            whom = f"{_SET}CA={settings.kafka_ca}" if settings.kafka_ca else f"the system ({_SET}CA names others)"
            text = f"shows a certificate that we do not trust, going by {whom}: {error.verify_message}"
    elif isinstance(under, ssl.SSLError):
        text = f"ended the TLS connection: {under}; it may want {_SET}CERT_FILE, of an authority that it trusts"
    elif isinstance(error, ssl.SSLError):
        text = f"speaks no TLS that we do: {error}"
    elif isinstance(under, asyncio.IncompleteReadError) and (under.expected or 0) >> 16 == _ALERT:
        text = f"speaks TLS; set {_SET}SECURITY_PROTOCOL=SASL_SSL or SSL"
    else:
        return None
    return FatalError(f"Kafka at {at} {text}")


def _in_words(kafka: Cluster, error: KafkaError | OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_PATIENCE_S:.0f} s"
    if isinstance(error, ConnectionResetError | KafkaConnectionError):
        protocol = kafka.settings.kafka_security_protocol
        return f"it closed the connection (is {_SET}SECURITY_PROTOCOL={protocol} what it speaks there?)"
    return str(error) or type(error).__name__
