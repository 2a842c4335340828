"""Apache Kafka on this machine: one KRaft node on loopback, its jars fetched by Maven once."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.fetching import alone, run
from deploy.local.parts import Say, StackError
from deploy.local.supervisor import ChildSpec
from flywheel.topics import MAX_MESSAGE_BYTES

KAFKA_VERSION = "4.3.0"
JAVA_MAJOR = 17

_HERE = Path(__file__).parent / "kafka"
_APT = "apt-get install -y --no-install-recommends"

#: The name in a certificate that opens everything.
ADMINISTRATOR = "administrator"

#: A batch adds its own header to its records.
_BATCH_OVERHEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Detour:
    """A second way to the broker, past something that stands in front of it, such as a proxy that may be cut.

    A broker tells its clients where to go on: those that come in on ``port`` are sent to ``advertised``, so that all
    their traffic takes the same way.
    """

    port: int
    advertised: int


@dataclass(frozen=True, slots=True)
class Doors:
    """Two more ways to the broker, with TLS, for those who may do what its ACLs say. Whoever comes by the plain one, or
    with the certificate of :data:`ADMINISTRATOR`, may do anything.

    ``scram`` is the port for users with a password (SCRAM-SHA-512), ``certificates`` the port for those with a
    certificate that ``authorities`` (PEM) sign. ``keystore`` (PEM) has the broker's own key and certificate, for
    ``host``.
    """

    host: str
    scram: int
    certificates: int
    keystore: Path
    authorities: Path
    passwords: Mapping[str, str]

    @property
    def listeners(self) -> str:
        """Where it listens."""
        return f",SCRAM://{self.host}:{self.scram},CERTIFICATES://{self.host}:{self.certificates}"

    def properties(self) -> tuple[str, ...]:
        """Return what they add to ``server.properties``."""
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return (
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            f"super.users=User:ANONYMOUS;User:CN={ADMINISTRATOR}",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self.keystore}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.authorities}",
            f"listener.name.scram.scram-sha-512.sasl.jaas.config={scram}",
            "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512",
            "listener.name.certificates.ssl.client.auth=required",
        )

    def users(self) -> tuple[str, ...]:
        """Return the arguments of ``format`` that make the users."""
        return tuple(f"--add-scram=SCRAM-SHA-512=[name={n},password={p}]" for n, p in self.passwords.items())


@dataclass(frozen=True, slots=True)
class Broker:
    """How to run one node: where it keeps its data, its two ports, and further ways to it where some are wanted."""

    data: Path
    port: int
    controller_port: int
    heap: str
    detour: Detour | None = None
    doors: Doors | None = None

    @property
    def address(self) -> str:
        """Bootstrap address."""
        return f"127.0.0.1:{self.port}"

    def properties(self) -> str:
        """Return ``server.properties``."""
        largest = MAX_MESSAGE_BYTES + _BATCH_OVERHEAD
        listeners = advertised = f"PLAINTEXT://{self.address}"
        if self.detour is not None:
            listeners += f",DETOUR://127.0.0.1:{self.detour.port}"
            advertised += f",DETOUR://127.0.0.1:{self.detour.advertised}"
        if self.doors is not None:
            listeners += self.doors.listeners
            advertised += self.doors.listeners
        return "\n".join(
            (
                "process.roles=broker,controller",
                "node.id=1",
                f"controller.quorum.voters=1@127.0.0.1:{self.controller_port}",
                f"listeners={listeners},CONTROLLER://127.0.0.1:{self.controller_port}",
                f"advertised.listeners={advertised}",
                "controller.listener.names=CONTROLLER",
                "inter.broker.listener.name=PLAINTEXT",
                "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,DETOUR:PLAINTEXT,"
                "SCRAM:SASL_SSL,CERTIFICATES:SSL",
                *(self.doors.properties() if self.doors is not None else ()),
                f"log.dirs={self.data / 'data'}",
                "auto.create.topics.enable=false",
                "offsets.topic.replication.factor=1",
                "offsets.topic.num.partitions=8",
                "transaction.state.log.replication.factor=1",
                "transaction.state.log.min.isr=1",
                "transaction.state.log.num.partitions=8",
                "group.initial.rebalance.delay.ms=0",
                f"message.max.bytes={largest}",
                f"replica.fetch.max.bytes={largest}",
                "",
            )
        )

    def spec(self, java: str, classpath: str, env: Mapping[str, str], log: Path) -> ChildSpec:
        """Return how to run the node."""
        argv = (
            *_jvm(java, classpath, self.heap), "kafka.Kafka", str(self.data / "server.properties"),
        )  # fmt: skip
        return ChildSpec("kafka", argv, env, self.data, log, grace=15.0)

    def format(self, java: str, classpath: str) -> None:
        """Write the properties, and prepare an empty data folder. Raises StackError when Kafka refuses."""
        self.data.mkdir(parents=True, exist_ok=True)
        properties = self.data / "server.properties"
        properties.write_text(self.properties(), encoding="utf-8")
        if (self.data / "data" / "meta.properties").exists():
            return
        argv = [
            *_jvm(java, classpath, "256m"), "kafka.tools.StorageTool", "format",
            f"--cluster-id={_cluster_id()}", "--config", str(properties),
            *(self.doors.users() if self.doors is not None else ()),
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"Kafka could not prepare {self.data}: {(done.stderr or done.stdout).strip()}")


def find_java(environ: Mapping[str, str]) -> str:
    """Return the path of a fitting ``java``. Raises StackError with the command that installs one."""
    home = environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else None
    java = java or shutil.which("java", path=environ.get("PATH"))
    hint = f"install one: {_APT} openjdk-17-jre-headless maven (or set FLYWHEEL_KAFKA to a running broker)"
    if java is None:
        raise StackError(f"Kafka needs Java {JAVA_MAJOR} or newer, and there is no java here; {hint}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA_MAJOR:
        have = found[1] if found else "of unknown version"
        raise StackError(f"Kafka needs Java {JAVA_MAJOR} or newer; {java} is {have}; {hint}")
    return java


def find_classpath(environ: Mapping[str, str], cache: Path, say: Say) -> str:
    """Return the broker's class path: ``KAFKA_HOME``'s jars, or those in ``cache``, fetched first where missing."""
    if home := environ.get("KAFKA_HOME"):
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_*.jar")):
            raise StackError(f"KAFKA_HOME={home} has no Kafka jars in libs/; unset it and they are fetched")
        return f"{libs}/*"
    libs = cache / f"kafka-{KAFKA_VERSION}"
    if not libs.is_dir():
        _fetch(libs, environ, say)
    return f"{libs}/*"


def _fetch(libs: Path, environ: Mapping[str, str], say: Say) -> None:
    maven = shutil.which("mvn", path=environ.get("PATH"))
    if maven is None:
        raise StackError(
            f"Kafka's jars are fetched once, with Maven, and there is no mvn here; install it: {_APT} maven "
            f"(or set KAFKA_HOME to an unpacked Kafka, or FLYWHEEL_KAFKA to a running broker)"
        )
    with alone(libs):
        if libs.is_dir():
            return
        part = libs.with_name(f".{libs.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        say(f"kafka: fetching the jars of Apache Kafka {KAFKA_VERSION} (54 MB) with Maven, once")
        argv = (
            maven, "-B", "-f", str(_HERE / "pom.xml"), "dependency:copy-dependencies", "-DincludeScope=runtime",
            f"-DoutputDirectory={part}",
        )  # fmt: skip
        run(argv, environ, counts=lambda line: "Downloaded from" in line, progress="kafka: {} files fetched", say=say)
        part.rename(libs)
        say(f"kafka: {len(list(libs.iterdir()))} jars in {libs}")


def _jvm(java: str, classpath: str, heap: str) -> tuple[str, ...]:
    # The first compiler alone: the broker starts on half the processor time, and serves 900 B records as cheaply.
    return (
        java, f"-Xmx{heap}", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}", "-cp", classpath,
    )  # fmt: skip


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
