"""TLS as a client: files that are renewed while it runs, and files that do not do. Against real handshakes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from flywheel.errors import FatalError
from flywheel.tls import Files, RenewingContext
from tests.support.certificates import Authority


class Server:
    """Shakes hands over TLS, says who the client is, and hangs up."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self._folder = folder
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.clients: Authority | None = None
        self.become(authority)
        threading.Thread(target=self._serve, daemon=True).start()

    def become(self, authority: Authority, *, host: str = "localhost", expired: bool = False) -> None:
        """Show a certificate of that authority from now on."""
        certificate, key = authority.sign("server", host, expired=expired)
        path = self._folder / "server.pem"
        path.write_bytes(key + certificate)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(path)

    def ask_for(self, authority: Authority) -> None:
        """Take clients only with a certificate of that authority from now on."""
        self._context.load_verify_locations(cadata=authority.pem.decode())
        self._context.verify_mode = ssl.CERT_REQUIRED

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    shown: Any = secured.getpeercert() or {}
                    subject = {name: value for ((name, value),) in shown.get("subject", ())}
                    secured.sendall(subject.get("commonName", "nobody").encode())
            except OSError:
                connection.close()

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[Server]:
    with closing(Server(tmp_path, authority)) as server:
        yield server


def who_am_i(context: ssl.SSLContext, server: Server, name: str = "localhost") -> str:
    """Connect, and return who the server says we are."""
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        return secured.recv(100).decode()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def paired(folder: Path, authority: Authority, name: str) -> tuple[Path, Path]:
    certificate, key = authority.sign(name)
    return written(folder / "client.crt", certificate), written(folder / "client.key", key)


def test_only_a_server_of_our_authority_and_of_that_name_is_spoken_to(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    ours = Files(authority.write(tmp_path / "ca.crt"))
    assert who_am_i(RenewingContext(ours), server) == "nobody"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        who_am_i(RenewingContext(ours), server, "elsewhere")
    assert who_am_i(RenewingContext(ours, check_hostname=False), server, "elsewhere") == "nobody"
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        who_am_i(RenewingContext(Files()), server)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        who_am_i(RenewingContext(Files(Authority("other").write(tmp_path / "other.crt"))), server)
    server.become(authority, expired=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        who_am_i(RenewingContext(ours, check_hostname=False), server)


def test_a_replaced_authority_is_trusted_from_the_next_connection_on_and_the_old_one_no_more(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    ca, new = authority.write(tmp_path / "ca.crt"), Authority("new")
    context = RenewingContext(Files(ca))
    assert who_am_i(context, server) == "nobody"
    new.write(ca)
    with pytest.raises(ssl.SSLCertVerificationError):
        who_am_i(context, server)
    server.become(new)
    assert who_am_i(context, server) == "nobody"


def test_a_folder_of_authorities_is_trusted_whole_while_they_change(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    """As Strimzi replaces an authority: the new one beside the old one, then the brokers, then the old one goes."""
    folder, new = tmp_path / "ca", Authority("new")
    folder.mkdir()
    (folder / "ca.p12").write_bytes(b"not for us")
    authority.write(folder / "ca.crt")
    context = RenewingContext(Files(folder))
    assert who_am_i(context, server) == "nobody"
    authority.write(folder / "ca-2026.crt")
    new.write(folder / "ca.crt")
    assert who_am_i(context, server) == "nobody"
    server.become(new)
    assert who_am_i(context, server) == "nobody"
    (folder / "ca-2026.crt").unlink()
    assert who_am_i(context, server) == "nobody"
    server.become(authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        who_am_i(context, server)


def test_files_swapped_by_a_link_are_noticed(server: Server, authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes does it: the mounted names are links through a folder that is itself a link."""
    for name, signs in (("first", Authority("other")), ("second", authority)):
        (tmp_path / name).mkdir()
        signs.write(tmp_path / name / "ca.crt")
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "ca.crt").symlink_to("data/ca.crt")
    context = RenewingContext(Files(tmp_path / "ca.crt"))
    with pytest.raises(ssl.SSLCertVerificationError):
        who_am_i(context, server)
    (tmp_path / "next").symlink_to("second")
    (tmp_path / "next").rename(tmp_path / "data")
    assert who_am_i(context, server) == "nobody"


def test_a_renewed_certificate_of_ours_is_shown_from_the_next_connection_on(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    server.ask_for(authority)
    certificate, key = paired(tmp_path, authority, "alice")
    context = RenewingContext(Files(authority.write(tmp_path / "ca.crt"), certificate, key))
    assert who_am_i(context, server) == "alice"
    paired(tmp_path, authority, "alice the second")
    assert who_am_i(context, server) == "alice the second"


@pytest.mark.parametrize("half", ["a key without its certificate", "no key", "garbage"])
def test_while_only_half_of_a_renewal_is_there_what_was_read_before_holds(
    server: Server, authority: Authority, tmp_path: Path, half: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.ask_for(authority)
    certificate, key = paired(tmp_path, authority, "alice")
    context = RenewingContext(Files(authority.write(tmp_path / "ca.crt"), certificate, key))
    new_certificate, new_key = authority.sign("alice the second")
    if half == "no key":
        key.unlink()
    else:
        key.write_bytes(new_key if half == "a key without its certificate" else b"garbage")
    assert who_am_i(context, server) == "alice"
    assert "going on with the certificates read before" in caplog.text
    written(key, new_key)
    written(certificate, new_certificate)
    assert who_am_i(context, server) == "alice the second"


def test_files_that_do_not_do_are_named(authority: Authority, tmp_path: Path) -> None:
    ca = authority.write(tmp_path / "ca.crt")
    certificate, key = paired(tmp_path, authority, "alice")
    other = written(tmp_path / "other.key", authority.sign("bob")[1])
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    encrypted = written(
        tmp_path / "encrypted.key",
        loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret),
    )
    (tmp_path / "empty").mkdir()
    for files, words in (
        (Files(tmp_path / "none.crt"), "none.crt.*No such file"),
        (Files(key), "client.key: no certificates of authorities"),
        (Files(tmp_path / "empty"), "empty: the folder has no certificates"),
        (Files(ca, certificate, other), "client.crt and .*other.key.*mismatch"),
        (Files(ca, certificate, tmp_path / "none.key"), "none.key"),
        (Files(ca, certificate, encrypted), "encrypted.key is encrypted"),
    ):
        with pytest.raises(FatalError, match=words):
            RenewingContext(files)
