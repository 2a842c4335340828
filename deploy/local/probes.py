"""Asks each part of a stack how it is. A probe talks to the part; it never believes a pid."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import asyncpg

from deploy.local import postgres, services
from deploy.local.parts import Part
from deploy.local.waiting import in_words
from flywheel.connection_settings import KafkaConnection, S3Connection
from flywheel.stream.cluster import Cluster
from flywheel.stream.reach import knock
from flywheel.tls import Files, RenewingContext


async def probe_infrastructure(name: str, env: Mapping[str, str]) -> None:
    """Ask Kafka, Postgres or S3 at the address in ``env``. Raises OSError, TransientError or asyncpg.PostgresError
    while it does not answer, FatalError when Kafka refuses us.
    """
    if name == "kafka":
        await knock(Cluster(KafkaConnection.of(env)))
    elif name == "postgres":
        with suppress(asyncpg.InvalidCatalogNameError):  # it answers; the database is created next
            await postgres.probe(env["FLYWHEEL_POSTGRES"])
    else:
        url = urlsplit(env["FLYWHEEL_S3"])
        async with asyncio.timeout(2.0):
            port = url.port or (443 if url.scheme == "https" else 80)
            _, writer = await asyncio.open_connection(url.hostname, port)
            writer.close()


async def probe_all(parts: Sequence[Part], env: Mapping[str, str]) -> dict[str, str]:
    """Return the health of each part by name: ``ok``, or what is wrong, in one line."""
    found = await asyncio.gather(*(_health(part, env) for part in parts))
    return {part.name: health for part, health in zip(parts, found, strict=True)}


def public(address: str) -> str:
    """Return ``address`` without the password in it."""
    url = urlsplit(address)
    if url.password is None:
        return address
    host = url.netloc.rpartition("@")[2]
    return url._replace(netloc=f"{url.username}@{host}").geturl()


async def _health(part: Part, env: Mapping[str, str]) -> str:
    try:
        if part.name in ("kafka", "postgres"):
            await probe_infrastructure(part.name, env)
        elif part.name == "s3":
            await asyncio.to_thread(_probe_bucket, env)
        else:
            await services.probe(f"{part.address}/readyz")
    except Exception as error:  # whatever went wrong is the answer
        return in_words(error)
    return "ok"


def _probe_bucket(env: Mapping[str, str]) -> None:
    """Look for the bucket with the stack's credentials. Raises when the server does not answer or refuses us."""
    import urllib3
    from minio import Minio

    store = S3Connection.of(env)
    url = urlsplit(store.s3)
    tls = RenewingContext(Files(store.s3_ca)) if url.scheme == "https" else None
    client = Minio(
        url.netloc, access_key=store.s3_access_key, secret_key=store.s3_secret_key.get_secret_value(),
        secure=tls is not None, region=store.s3_region,
        http_client=urllib3.PoolManager(timeout=2.0, retries=False, ssl_context=tls),
    )  # fmt: skip
    if not client.bucket_exists(store.s3_bucket):
        raise LookupError(f"no bucket {store.s3_bucket}")
