"""Kafka, Postgres and S3: how each is to be run here, and what Flywheel declares in it.

The ``plan_…`` functions fetch and prepare what is missing and choose ports; they block, and are run in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local import broker, fetching, objects, postgres
from deploy.local.parts import Say
from deploy.local.ports import PortBook
from deploy.local.state import StackFiles
from deploy.local.supervisor import ChildSpec
from flywheel.connection_settings import KafkaConnection, S3Connection
from flywheel.settings import LocalSettings
from flywheel.storage.s3 import S3ObjectStore
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.topics import ALL_TOPICS

#: Settings that point a part at an existing server.
ELSEWHERE = {"kafka": "FLYWHEEL_KAFKA", "postgres": "FLYWHEEL_POSTGRES", "s3": "FLYWHEEL_S3"}
#: How a part of these is entered: settings that only mean something beside the one that points there.
ENTRANCE = {
    "kafka": tuple(f"FLYWHEEL_{name.upper()}" for name in KafkaConnection.model_fields if name != "kafka"),
    "postgres": (),
    "s3": ("FLYWHEEL_S3_ACCESS_KEY", "FLYWHEEL_S3_SECRET_KEY", "FLYWHEEL_S3_CA"),
}

#: Taken when free by a stack with services, so that a person finds what they expect; others get any free ports.
USUAL_PORTS = {
    "kafka": 9092, "postgres": 5432, "s3": 9000, "gateway": 8080,
    "recorder": 9101, "archiver": 9102, "trainer": 9103, "deployer": 9104,
}  # fmt: skip


def absolute(setting: str, value: str) -> str:
    """Return the value of a setting of :data:`ENTRANCE` as others can use it, who stand in another folder."""
    return str(Path(value).resolve()) if setting.endswith(("_FILE", "_CA")) else value


@dataclass(frozen=True, slots=True)
class Site:
    """Where a stack is built: its files, the environment its parts inherit, its settings and its ports."""

    files: StackFiles
    environ: Mapping[str, str]
    settings: LocalSettings
    ports: PortBook
    usual_ports: bool
    say: Say
    detour: broker.Detour | None = None

    @property
    def cache(self) -> Path:
        """Folder for downloads and builds that outlive ``make clean``."""
        return self.settings.cache or fetching.default_cache(self.environ)

    def port(self, name: str, fixed: int | None, setting: str) -> int:
        """Reserve the port of part ``name``. Raises StackError when ``fixed`` (by ``setting``) is taken."""
        if fixed is not None:
            return self.ports.fixed(name, fixed, setting)
        return self.ports.choose(name, USUAL_PORTS[name] if self.usual_ports else None)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run one part, where it will be, and the settings by which others find it."""

    spec: ChildSpec
    address: str
    env: Mapping[str, str]


def install(settings: LocalSettings, environ: Mapping[str, str], say: Say) -> None:
    """Fetch or build what is missing. Raises StackError with the command that installs what we cannot.

    Done by the stack as it starts too; apart, it runs in the foreground, where Ctrl-C ends a download at once.
    """
    cache = settings.cache or fetching.default_cache(environ)
    if not environ.get(ELSEWHERE["kafka"]):
        broker.find_java(environ)
        broker.find_classpath(environ, cache, say)
    if not environ.get(ELSEWHERE["postgres"]):
        postgres.find_programs()
    if not environ.get(ELSEWHERE["s3"]):
        if settings.s3 == "minio":
            objects.find_minio(environ, cache, say)
        else:
            objects.find_weed(environ)


def plan_kafka(site: Site) -> Plan:
    """Prepare Kafka. Raises StackError when Java, Maven or the port is missing."""
    java = broker.find_java(site.environ)
    classpath = broker.find_classpath(site.environ, site.cache, site.say)
    node = broker.Broker(
        data=site.files.var / "kafka",
        port=site.port("kafka", site.settings.kafka_port, "FLYWHEEL_LOCAL_KAFKA_PORT"),
        controller_port=site.ports.choose("kafka.controller"),
        heap=site.settings.kafka_heap,
        detour=site.detour,
    )
    node.format(java, classpath)
    spec = node.spec(java, classpath, site.environ, site.files.log("kafka"))
    return Plan(spec, node.address, {ELSEWHERE["kafka"]: node.address})


def plan_postgres(site: Site) -> Plan:
    """Prepare Postgres. Raises StackError when it cannot run here or its port is taken."""
    server = postgres.Server(
        data=site.files.var / "postgres" / "data",
        port=site.port("postgres", site.settings.postgres_port, "FLYWHEEL_LOCAL_POSTGRES_PORT"),
        password=site.files.credential("postgres"),
        programs=postgres.find_programs(),
        account=postgres.find_account(),
    )
    server.initialise(site.say)
    spec = server.spec(site.environ, site.files.log("postgres"))
    return Plan(spec, server.url, {ELSEWHERE["postgres"]: server.url})


def plan_s3(site: Site) -> Plan:
    """Prepare the S3 server of the settings. Raises StackError when it cannot be had or its port is taken."""
    secret = site.files.credential("s3")
    port = site.port("s3", site.settings.s3_port, "FLYWHEEL_LOCAL_S3_PORT")
    if site.settings.s3 == "minio":
        program = objects.find_minio(site.environ, site.cache, site.say)
        server = objects.MinIO(site.files.var / "minio", port, secret, program)
    else:
        inner = {name: site.ports.choose(name) for name in objects.SEAWEED_PORTS if name != "s3"}
        program = objects.find_weed(site.environ)
        server = objects.SeaweedFS(site.files.var / "s3", {"s3": port, **inner}, secret, program)
    env = {
        ELSEWHERE["s3"]: server.url,
        "FLYWHEEL_S3_ACCESS_KEY": objects.ACCESS_KEY,
        "FLYWHEEL_S3_SECRET_KEY": secret,
    }
    return Plan(server.spec(site.environ, site.files.log("s3")), server.url, env)


PLANS: Mapping[str, Callable[[Site], Plan]] = {"kafka": plan_kafka, "postgres": plan_postgres, "s3": plan_s3}


async def declare(name: str, env: Mapping[str, str]) -> str:
    """Create in part ``name`` what Flywheel needs and is missing; return what that is.

    Raises TransientError, OSError or asyncpg.PostgresError while the part is not up yet.
    """
    if name == "kafka":
        await ensure_topics(Cluster(KafkaConnection.of(env)))
        return f"{len(ALL_TOPICS)} topics"
    if name == "postgres":
        await postgres.ensure_database(env["FLYWHEEL_POSTGRES"])
        return "database"
    store = S3ObjectStore.from_settings(S3Connection.of(env))
    await asyncio.to_thread(store.ensure_bucket)
    return "bucket"
