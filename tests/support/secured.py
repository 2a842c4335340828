"""A Kafka as in production: TLS, users with passwords or certificates, and the ACLs of the cluster's own manifests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from deploy.k8s import kafka as manifests
from deploy.local import fetching
from deploy.local.broker import Broker, Doors, find_classpath, find_java
from deploy.local.ports import PortBook
from deploy.local.supervisor import ChildSpec, Supervisor
from flywheel.connection_settings import KafkaConnection
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from tests.support.certificates import Authority
from tests.support.waiting import eventually

HOST = "localhost"
#: What the manifests call these, as Kafka's protocol numbers them.
_RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
_PATTERNS = {"literal": 3, "prefix": 4}
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "DescribeConfigs": 10}
_ALLOW = 3


class SecuredKafka:
    """One broker with two doors, in ``folder``. ``admin`` is a third one, plain, for who sets it up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self._ports = PortBook()
        self._supervisor = Supervisor(print, lambda: None)
        self._spec: ChildSpec | None = None

    async def start(self) -> None:
        """Make certificates and users, start the broker, declare the topics and let each user do what it may."""
        self.folder.mkdir(parents=True)
        self.ca = self.authority.write(self.folder / "ca.crt")
        self.renew()
        names = [user["metadata"]["name"] for user in manifests.users()]
        self._doors = Doors(
            HOST, self._ports.choose("scram"), self._ports.choose("certificates"), self.folder / "broker.pem",
            self.ca, {name: self.password(name) for name in names},
        )  # fmt: skip
        self._broker = Broker(
            self.folder / "kafka", self._ports.choose("kafka"), self._ports.choose("controller"), "384m",
            doors=self._doors,
        )  # fmt: skip
        self._java = find_java(os.environ)
        self._classpath = find_classpath(os.environ, fetching.default_cache(os.environ), print)
        await asyncio.to_thread(self._broker.format, self._java, self._classpath)
        self._spec = self._broker.spec(self._java, self._classpath, os.environ, self.folder / "kafka.log")
        await self.resume()
        await ensure_topics(self.admin)
        await self.allow(manifests.users())

    async def stop(self) -> None:
        await self.halt()
        self._ports.release()

    async def halt(self) -> None:
        """Stop the broker; its data stay."""
        if "kafka" in self._supervisor.children:
            await self._supervisor.stop("kafka")

    async def resume(self) -> None:
        """Start the broker, and return when it answers."""
        assert self._spec is not None
        await self._supervisor.start(self._spec)
        await eventually(self._answers)

    def renew(self, authority: Authority | None = None) -> None:
        """Give the broker a new certificate, from a new authority too if one is given; it holds from the next start."""
        self.authority = authority or self.authority
        certificate, key = self.authority.sign("broker", HOST)
        (self.folder / "broker.pem").write_bytes(key + certificate)

    async def change_password(self, user: str, password: str) -> None:
        """Give a user another password. Whoever is in stays in, until its connection ends."""
        config = f"SCRAM-SHA-512=[password={password}]"
        process = await asyncio.create_subprocess_exec(
            self._java, "-cp", self._classpath, "kafka.admin.ConfigCommand", "--bootstrap-server", self.admin,
            "--alter", "--add-config", config, "--entity-type", "users", "--entity-name", user,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def allow(self, users: Iterable[Mapping[str, Any]]) -> None:
        """Let each KafkaUser do what its resource says, and nothing else."""
        await self._rules(
            CreateAclsRequest,
            [
                (user["metadata"]["name"], rule["resource"], operation)
                for user in users
                for rule in user["spec"]["authorization"]["acls"]
                for operation in rule["operations"]
            ],
        )

    async def forbid(self, user: str, topic: str, operation: str) -> None:
        """Take a user's right to a topic away."""
        resource = {"type": "topic", "name": topic, "patternType": "literal"}
        await self._rules(DeleteAclsRequest, [(user, resource, operation)])

    @property
    def admin(self) -> str:
        """Bootstrap servers of the plain door, whose users may do anything."""
        return self._broker.address

    @staticmethod
    def password(user: str) -> str:
        return f"password-of-{user}"

    def write_password(self, user: str, password: str) -> None:
        """Put a password where who comes in as this user finds it."""
        self._password_file(user).write_text(password + "\n")

    def login(self, user: str) -> dict[str, str]:
        """FLYWHEEL_ settings of somebody who comes in with a password, in a file as Kubernetes gives it."""
        path = self._password_file(user)
        if not path.exists():
            self.write_password(user, self.password(user))
        return {
            "FLYWHEEL_KAFKA": f"{HOST}:{self._doors.scram}",
            "FLYWHEEL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "FLYWHEEL_KAFKA_USER": user,
            "FLYWHEEL_KAFKA_PASSWORD_FILE": str(path),
            "FLYWHEEL_KAFKA_CA": str(self.ca),
        }

    def certified(self, name: str) -> dict[str, str]:
        """FLYWHEEL_ settings of somebody who comes in with a certificate."""
        certificate, key = self.folder / f"{name}.crt.pem", self.folder / f"{name}.key"
        if not key.exists():
            for path, data in zip((certificate, key), self.authority.sign(name), strict=True):
                path.write_bytes(data)
        return {
            "FLYWHEEL_KAFKA": f"{HOST}:{self._doors.certificates}",
            "FLYWHEEL_KAFKA_SECURITY_PROTOCOL": "SSL",
            "FLYWHEEL_KAFKA_CERT_FILE": str(certificate),
            "FLYWHEEL_KAFKA_KEY_FILE": str(key),
            "FLYWHEEL_KAFKA_CA": str(self.ca),
        }

    def cluster(self, user: str, **changed: Any) -> Cluster:
        """The broker as a user finds it, with some settings changed."""
        return Cluster(connection(self.login(user), **changed))

    def _password_file(self, user: str) -> Path:
        return self.folder / f"{user}.password"

    async def _rules(self, request: Any, rules: Iterable[tuple[str, Mapping[str, str], str]]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.admin)
        await admin.start()
        try:
            for user, resource, operation in rules:
                kind, pattern = _RESOURCES[resource["type"]], _PATTERNS[resource["patternType"]]
                right = (kind, resource["name"], pattern, f"User:{user}", "*", _OPERATIONS[operation], _ALLOW)
                done: Any = await admin._send_to_controller(request(*right))
                answers = done.creation_responses if request is CreateAclsRequest else done.filter_responses
                assert [code for code, *_ in answers] == [0], done
        finally:
            await admin.close()

    async def _answers(self) -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.admin)
        try:
            await admin.start()
        except KafkaConnectionError:
            return False
        finally:
            await admin.close()
        return True


def connection(settings: Mapping[str, str], **changed: Any) -> KafkaConnection:
    """FLYWHEEL_KAFKA… variables as settings, with some changed (None: as if they were not set)."""
    values = {name.removeprefix("FLYWHEEL_").lower(): value for name, value in settings.items()} | changed
    return KafkaConnection.model_validate({name: value for name, value in values.items() if value is not None})
