"""The local stack on servers that exist already and speak TLS: Kafka by a certificate, Postgres, and S3."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from deploy.local.broker import ADMINISTRATOR
from deploy.local.stack import LocalStack
from deploy.local.state import read_env
from flywheel.connection_settings import KafkaConnection
from flywheel.errors import FatalError, FlywheelError, TransientError
from flywheel.sdk import Recorder
from flywheel.storage import postgres
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.cluster import Cluster
from tests.support.certificates import Authority
from tests.support.command import Command
from tests.support.proxy import PostgresProxy, Proxy
from tests.support.secured import HOST, SecuredKafka
from tests.support.waiting import eventually
from tests.support.world import rows, unique

pytestmark = pytest.mark.stack


@dataclass(frozen=True)
class Stores:
    """The stack's Postgres and S3, each behind TLS. ``ca`` is who signs for them; ``other``, somebody who does not."""

    postgres: str
    s3: str
    ca: Path
    other: Path

    def url(self, sslmode: str, *, ca: Path | None = None, host: str = HOST) -> str:
        """Postgres's URL with some settings of TLS."""
        return f"{self.postgres.replace(HOST, host)}?sslmode={sslmode}&sslrootcert={ca or self.ca}"


@pytest_asyncio.fixture(scope="module")
async def stores(environment: dict[str, str], secured: SecuredKafka) -> AsyncIterator[Stores]:
    certificate, key = secured.authority.sign("stores", HOST)
    (secured.folder / "stores.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secured.folder / "stores.pem")
    database, objects = urlsplit(environment["FLYWHEEL_POSTGRES"]), urlsplit(environment["FLYWHEEL_S3"])
    assert database.hostname and database.port and objects.hostname and objects.port
    proxies = (
        PostgresProxy(database.hostname, database.port, tls=context),
        Proxy(objects.hostname, objects.port, tls=context),
    )
    for proxy in proxies:
        await proxy.mend()
    yield Stores(
        database._replace(netloc=f"{database.username}:{database.password}@{HOST}:{proxies[0].port}").geturl(),
        f"https://{HOST}:{proxies[1].port}", secured.ca, Authority("other").write(secured.folder / "other.crt"),
    )  # fmt: skip
    for proxy in proxies:
        await proxy.cut()


@pytest.fixture(scope="module")
def elsewhere(environment: dict[str, str], secured: SecuredKafka, stores: Stores) -> dict[str, str]:
    """What a person sets who has such servers. Paths are as they see them, from their own folder."""
    kafka = secured.certified(ADMINISTRATOR)
    return {
        **kafka,
        "FLYWHEEL_KAFKA_CA": os.path.relpath(kafka["FLYWHEEL_KAFKA_CA"]),
        "FLYWHEEL_POSTGRES": stores.url("verify-full"),
        "FLYWHEEL_S3": stores.s3,
        "FLYWHEEL_S3_ACCESS_KEY": environment["FLYWHEEL_S3_ACCESS_KEY"],
        "FLYWHEEL_S3_SECRET_KEY": environment["FLYWHEEL_S3_SECRET_KEY"],
        "FLYWHEEL_S3_BUCKET": environment["FLYWHEEL_S3_BUCKET"],
        "FLYWHEEL_S3_CA": os.path.relpath(stores.ca),
    }


async def test_the_stack_runs_on_servers_with_tls(
    elsewhere: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    services = ("recorder", "archiver", "gateway")
    stack = LocalStack(tmp_path / "var", services, environ={**os.environ, **elsewhere})
    await stack.start(print)
    try:
        parts = await stack.probe()
        assert {name: part.health for name, part in parts.items()} == dict.fromkeys(parts, "ok")
        assert {parts[name].state for name in ("kafka", "postgres", "s3")} == {"external"}
        name = unique("t")
        async with Recorder("agent", Cluster(KafkaConnection.of(stack.env))) as recorder:
            with recorder.trajectory("s", trajectory_id=name):
                pass
        sql = "SELECT status FROM trajectories WHERE trajectory_id = $1 AND status = 'completed'"
        await eventually(lambda: rows(environment["FLYWHEEL_POSTGRES"], sql, name))
    finally:
        await stack.stop()

    # Whoever sourced the file of addresses that the stack wrote, as its page says, means the same servers.
    sourced = {**os.environ, **read_env(stack.files.env)}
    again = LocalStack(tmp_path / "var", services=False, environ=sourced)
    await again.start(print)
    try:
        assert {part.state for part in (await again.probe()).values()} == {"external"}
    finally:
        await again.stop()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"FLYWHEEL_KAFKA_USER": "me"}, "SECURITY_PROTOCOL=SSL does not log in, but FLYWHEEL_KAFKA_USER is set"),
        ({"FLYWHEEL_KAFKA_CA": "no/such/file"}, "no/such/file: no certificates of authorities can be read from it"),
        ({"FLYWHEEL_KAFKA_CERT_FILE": "", "FLYWHEEL_KAFKA_KEY_FILE": ""}, "it may want FLYWHEEL_KAFKA_CERT_FILE"),
    ],
)
async def test_a_stack_that_cannot_get_in_says_why_at_once(
    elsewhere: dict[str, str], command: Command, tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    done = await command("up", "--no-services", **{**elsewhere, "FLYWHEEL_VAR": str(tmp_path), **changed})
    assert done.status == 1 and words in done.out and "the reason is above" in done.err, done
    assert "Traceback" not in done.out and elsewhere["FLYWHEEL_S3_SECRET_KEY"] not in done.out


async def refused(url: str) -> FlywheelError:
    with pytest.raises(FlywheelError) as caught:
        await postgres.connect(url)
    return caught.value


async def test_postgres_is_entered_as_its_url_says(stores: Stores, database: str) -> None:
    for url in (stores.url("verify-full"), f"{stores.postgres}?sslmode=require"):
        pool = await postgres.connect(url)
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()
    for url, words in (
        (stores.url("verify-full", ca=stores.other), "do not let us trust"),
        (stores.url("verify-full", host="127.0.0.1"), "IP address mismatch"),
        (stores.url("verify-full", ca=Path("/no/such/file")), "sslrootcert cannot be read"),
        (stores.url("always"), "must be one of"),
    ):
        error = await refused(url)
        assert isinstance(error, FatalError) and words in str(error), error
    plain = await refused(f"{database}?sslmode=require")  # a server without TLS may be one that is being set up
    assert isinstance(plain, TransientError) and "rejected SSL upgrade" in str(plain)


async def test_the_object_store_is_entered_as_its_settings_say(stores: Stores, environment: dict[str, str]) -> None:
    def store(ca: Path | None, endpoint: str = stores.s3) -> S3ObjectStore:
        return S3ObjectStore(
            endpoint, access_key=environment["FLYWHEEL_S3_ACCESS_KEY"], bucket=environment["FLYWHEEL_S3_BUCKET"],
            secret_key=environment["FLYWHEEL_S3_SECRET_KEY"], ca=ca,
        )  # fmt: skip

    await asyncio.to_thread(store(stores.ca).put, "a/key", b"bytes")
    assert await asyncio.to_thread(store(stores.ca).get, "a/key") == b"bytes"
    for wrong, words in (
        (store(stores.other), "certificate verify failed"),
        (store(None), "certificate verify failed"),
        (store(stores.ca, stores.s3.replace(HOST, "127.0.0.1")), "IP address mismatch"),
    ):
        with pytest.raises(TransientError, match=words):
            await asyncio.to_thread(wrong.get, "a/key")
    with pytest.raises(FatalError, match="without TLS, but FLYWHEEL_S3_CA is set"):
        store(stores.ca, environment["FLYWHEEL_S3"])
