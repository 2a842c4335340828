"""How Kafka is entered: which settings fit together, that no password shows, and what becomes of a changed one."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection
from pydantic import ValidationError

from flywheel.cli.main import describe
from flywheel.connection_settings import KafkaConnection
from flywheel.errors import FatalError
from flywheel.settings import Connections
from flywheel.stream._connection import Password
from flywheel.stream._faust import credentials
from flywheel.stream.cluster import Cluster
from tests.support.certificates import Authority

SECRET = "hunter2-and-more"
LOGIN = {"FLYWHEEL_KAFKA_USER": "alice", "FLYWHEEL_KAFKA_PASSWORD": SECRET}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files that exist, by setting."""
    authority = Authority()
    certificate, key = authority.sign("alice")
    found = {}
    for name, data in (("CA", authority.pem), ("CERT_FILE", certificate), ("KEY_FILE", key), ("PASSWORD_FILE", b"p\n")):
        (tmp_path / name).write_bytes(data)
        found[f"FLYWHEEL_KAFKA_{name}"] = str(tmp_path / name)
    return found


def allowed(protocol: str, given: set[str]) -> bool:
    """The rule in one place: what is given is used, and what is needed is given."""
    login, tls = protocol.startswith("SASL"), protocol.endswith("SSL")
    has_login = given & {"USER", "PASSWORD", "PASSWORD_FILE"}
    if (has_login and not login) or (given & {"CA", "CERT_FILE", "KEY_FILE"} and not tls):
        return False
    one_password = len(given & {"PASSWORD", "PASSWORD_FILE"}) == 1
    return len(given & {"CERT_FILE", "KEY_FILE"}) != 1 and (not login or ("USER" in given and one_password))


def test_settings_that_do_not_fit_together_are_refused_and_all_others_taken(files: dict[str, str]) -> None:
    values = {**LOGIN, **files}
    names = ["USER", "PASSWORD", "PASSWORD_FILE", "CA", "CERT_FILE", "KEY_FILE"]
    taken = 0
    for protocol, *chosen in product(("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"), *([(False, True)] * 6)):
        given = {name for name, is_given in zip(names, chosen, strict=True) if is_given}
        env = {f"FLYWHEEL_KAFKA_{name}": values[f"FLYWHEEL_KAFKA_{name}"] for name in given}
        env["FLYWHEEL_KAFKA_SECURITY_PROTOCOL"] = str(protocol)
        try:
            found = KafkaConnection.of(env)
        except FatalError as error:
            assert not allowed(str(protocol), given), (protocol, given)
            assert SECRET not in str(error) and "FLYWHEEL_KAFKA_" in str(error)
        else:
            assert allowed(str(protocol), given), (protocol, given)
            cluster = Cluster(found)
            assert SECRET not in repr(found) + repr(cluster) + str(cluster) + repr(cluster.arguments())
            taken += 1
    assert taken == 1 + 4 + 2 + 8


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"FLYWHEEL_KAFKA_SECURITY_PROTOCOL": "TLS"}, "FLYWHEEL_KAFKA_SECURITY_PROTOCOL"),
        ({"FLYWHEEL_KAFKA_SASL_MECHANISM": "SCRAM"}, "FLYWHEEL_KAFKA_SASL_MECHANISM"),
        ({"FLYWHEEL_KAFKA_CHECK_HOSTNAME": "false"}, "FLYWHEEL_KAFKA_CHECK_HOSTNAME is set"),
        (LOGIN, "does not log in, but FLYWHEEL_KAFKA_USER, FLYWHEEL_KAFKA_PASSWORD is set"),
        ({"FLYWHEEL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "needs FLYWHEEL_KAFKA_USER"),
        ({"FLYWHEEL_KAFKA_SECURITY_PROTOCOL": "SSL", "FLYWHEEL_KAFKA_KEY_FILE": "k"}, "set both or none"),
    ],
)
def test_the_environment_is_refused_in_words_that_name_the_variable(
    changed: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FatalError, match=words):
        KafkaConnection.of(changed)
    with pytest.raises(ValidationError) as caught:
        Connections.load()
    assert words in describe(caught.value)
    assert SECRET not in describe(caught.value) and SECRET not in str(caught.value)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert KafkaConnection.of({"FLYWHEEL_KAFKA": "a:1", "FLYWHEEL_KAFKA_USER": ""}) == KafkaConnection(kafka="a:1")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_comes_in_as_every_other_client_does(protocol: str, mechanism: str, files: dict[str, str]) -> None:
    from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

    env = {**LOGIN, "FLYWHEEL_KAFKA_SECURITY_PROTOCOL": protocol, "FLYWHEEL_KAFKA_SASL_MECHANISM": mechanism}
    cluster = Cluster(KafkaConnection.of(env))
    assert credentials_to_aiokafka_auth(credentials(cluster)) == cluster.arguments()
    secure = Cluster(KafkaConnection(kafka_security_protocol="SSL", kafka_ca=Path(files["FLYWHEEL_KAFKA_CA"])))
    assert credentials_to_aiokafka_auth(credentials(secure)) == secure.arguments()
    plain = Cluster.of("a:1")
    assert credentials(plain) is None and plain.arguments()["security_protocol"] == "PLAINTEXT"


def test_a_password_is_the_first_line_of_its_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b" one two \r\nand a comment\n")
    password = Password.read(path)
    assert password == " one two " and SECRET not in repr(password)
    path.write_text("changed")
    assert password.now() == "changed"
    path.unlink()
    assert password.now() == " one two "
    for wrong, words in ((b"", "no password"), (b"\nsecond", "no password"), (b"\xff", "cannot be read")):
        path.write_bytes(wrong)
        with pytest.raises(FatalError, match=words):
            Password.read(path)


async def test_closing_does_not_wait_for_a_broker_that_says_nothing(tmp_path: Path) -> None:
    """A goodbye that is never answered: asyncio would wait for half a minute, longer than a service may drain."""
    authority = Authority()
    certificate, key = authority.sign("server", "localhost")
    (tmp_path / "server.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def silent() -> None:
        connection, _ = listening.accept()
        with context.wrap_socket(connection, server_side=True):
            over.wait()

    thread = threading.Thread(target=silent, daemon=True)
    thread.start()
    settings = KafkaConnection(kafka_security_protocol="SSL", kafka_ca=authority.write(tmp_path / "ca.crt"))
    arguments: dict[str, Any] = Cluster(settings).arguments()
    connection = AIOKafkaConnection("localhost", listening.getsockname()[1], client_id="test", **arguments)
    connecting = asyncio.ensure_future(connection.connect())
    try:
        while connection._writer is None:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            closed: Any = connection.close()
            await closed
    finally:
        over.set()
        thread.join()
        listening.close()
        await asyncio.gather(connecting, return_exceptions=True)
