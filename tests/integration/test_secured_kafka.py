"""Who may do what on a Kafka as in production, and what those hear who may not: real TLS, SCRAM and ACLs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError

from deploy.k8s.kafka import USERS, User
from flywheel.errors import FatalError, TransientError
from flywheel.sdk import Options, Recorder
from flywheel.stream._kafka import grouped_consumer, mapped
from flywheel.stream.admin import ensure_topics
from flywheel.stream.cluster import Cluster
from flywheel.stream.follow import follow
from flywheel.stream.offsets import read_offsets
from flywheel.stream.producer import Producer
from flywheel.stream.reach import knock
from flywheel.stream.scan import scan, spans
from flywheel.topics import ALL_TOPICS, EVENTS, MODEL_UPDATES
from tests.support.certificates import Authority
from tests.support.processes import ServiceProcesses
from tests.support.secured import HOST, SecuredKafka, connection
from tests.support.waiting import eventually

pytestmark = pytest.mark.stack

NAMES = [topic.name for topic in ALL_TOPICS]


async def writable(cluster: Cluster) -> set[str]:
    """The topics that somebody can write, by writing to each."""
    producer = Producer(cluster)
    try:
        await producer.start()
    except FatalError:
        return set()  # whoever may write nothing is not even given a producer's id
    try:
        sent = [producer.send_and_wait(name, "key", b"garbage") for name in NAMES]
        results = await asyncio.gather(*sent, return_exceptions=True)
    finally:
        await producer.close()
    assert all(result is None or isinstance(result, FatalError) for result in results), results
    return {name for name, result in zip(NAMES, results, strict=True) if result is None}


async def readable(cluster: Cluster) -> set[str]:
    """The topics that somebody can read, by reading each, one after the other."""
    found = set()
    for span in await spans(cluster, named=NAMES):
        if span.end > span.start and span.topic not in found:
            try:
                async with aclosing(scan(cluster, [span])) as records:
                    async for _ in records:
                        found.add(span.topic)
                        break
            except FatalError:
                pass
    return found


@pytest.fixture(scope="module")
async def records(secured: SecuredKafka) -> None:
    """Something to read in every topic."""
    assert await writable(Cluster.of(secured.admin)) == set(NAMES)


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
async def test_a_user_may_do_what_the_manifests_say_and_no_more(
    secured: SecuredKafka, records: None, user: User
) -> None:
    cluster = secured.cluster(f"flywheel-{user.name}")
    assert await writable(cluster) == {topic.name for topic in user.writes} | set(user.dead)
    assert await readable(cluster) == {topic.name for topic in user.reads}
    seen = {topic for topic, _ in (await read_offsets(cluster, NAMES)).end}
    assert seen == (set(NAMES) if user.sees_all else {topic.name for topic in (*user.reads, *user.writes)})


@pytest.mark.parametrize("user", ["agents", "archiver", "gateway", "operator"])
async def test_nobody_joins_the_group_of_another(secured: SecuredKafka, user: str) -> None:
    consumer = grouped_consumer(secured.cluster(f"flywheel-{user}"), "flywheel-recorder")
    await consumer.start()
    try:
        consumer.subscribe([MODEL_UPDATES.name])
        with pytest.raises(GroupAuthorizationFailedError) as caught:
            async with asyncio.timeout(30):
                await consumer.getmany(timeout_ms=20_000)
        known = mapped(caught.value)
        assert isinstance(known, FatalError) and "no right" in str(known)
    finally:
        await consumer.stop()


def wrongly(secured: SecuredKafka, folder: Path) -> dict[str, tuple[Cluster, str]]:
    """Ways to knock that no retry mends, and what must be said of each."""
    right = secured.login("flywheel-recorder")
    port = right["FLYWHEEL_KAFKA"].rpartition(":")[2]
    plain: dict[str, Any] = dict.fromkeys(("kafka_user", "kafka_password_file", "kafka_ca"))
    other = Authority("other").write(folder / "other.crt")
    bare: dict[str, Any] = dict.fromkeys(("kafka_cert_file", "kafka_key_file"))

    def changed(**values: Any) -> Cluster:
        return Cluster(connection(right, **values))

    return {
        "password": (
            changed(kafka_password_file=None, kafka_password="wrong-one"),
            "refuses flywheel-recorder: .*invalid credentials.*FLYWHEEL_KAFKA_PASSWORD must be",
        ),
        "user": (changed(kafka_user="nobody"), "refuses nobody: .*flywheel-recorder.password must be"),
        "mechanism": (changed(kafka_sasl_mechanism="SCRAM-SHA-256"), "does not take SCRAM-SHA-256"),
        "authority": (changed(kafka_ca=other), "do not trust, going by FLYWHEEL_KAFKA_CA=.*other.crt"),
        "no authority": (changed(kafka_ca=None), "do not trust, going by the system"),
        "name": (changed(kafka=f"127.0.0.1:{port}"), "is not who it should be: IP address mismatch"),
        "no TLS, no login": (changed(kafka_security_protocol="PLAINTEXT", **plain), "speaks TLS; set"),
        "no TLS": (changed(kafka_security_protocol="SASL_PLAINTEXT", kafka_ca=None), "speaks TLS; set"),
        "no certificate": (
            Cluster(connection(secured.certified("alice"), **bare)), "may want FLYWHEEL_KAFKA_CERT_FILE",
        ),
        "a login where there is none": (
            changed(kafka=secured.admin, kafka_security_protocol="SASL_PLAINTEXT", kafka_ca=None), "lets nobody log in",
        ),
    }  # fmt: skip


async def test_whoever_is_refused_hears_why(secured: SecuredKafka, tmp_path: Path) -> None:
    for what, (cluster, words) in wrongly(secured, tmp_path).items():
        with pytest.raises(FatalError, match=words) as caught:
            await Producer(cluster).start()
        assert "wrong-one" not in str(caught.value), what


async def test_every_client_hears_it(secured: SecuredKafka, tmp_path: Path) -> None:
    cluster, words = wrongly(secured, tmp_path)["password"]
    for client in (
        lambda: ensure_topics(cluster),
        lambda: read_offsets(cluster, NAMES),
        lambda: spans(cluster),
        lambda: anext(follow(cluster, EVENTS.name, from_beginning=True)),
        lambda: knock(cluster),
    ):
        with pytest.raises(FatalError, match=words):
            await client()


async def test_what_may_be_a_listener_of_another_kind_is_said_and_tried_again(secured: SecuredKafka) -> None:
    login = secured.login("flywheel-recorder")
    there = connection(login, kafka_security_protocol="SSL", kafka_user=None, kafka_password_file=None)
    nowhere = connection(login, kafka=f"{HOST}:1,no.such.name.invalid:9092")
    for settings, words in (
        (there, "FLYWHEEL_KAFKA_SECURITY_PROTOCOL=SSL what it speaks there"),
        (nowhere, "no Kafka"),
    ):
        with pytest.raises(TransientError, match=words):
            await Producer(Cluster(settings)).start()


async def test_services_that_are_refused_end_and_say_why(
    secured: SecuredKafka, service_process: ServiceProcesses
) -> None:
    wrong = {"FLYWHEEL_KAFKA_PASSWORD_FILE": "", "FLYWHEEL_KAFKA_PASSWORD": "wrong-one"}
    processes = [
        service_process(name, **{**secured.login(f"flywheel-{name}"), **wrong})
        for name in ("recorder", "archiver", "gateway")
    ]
    await asyncio.gather(*(process.start(ready=False) for process in processes))
    for process in processes:
        assert await eventually(lambda process=process: process.returncode) == 70, process.tail()
        log = process.log.read_text()
        assert f"refuses flywheel-{process.name}" in log and "wrong-one" not in log


async def test_an_agent_that_is_refused_goes_on_and_can_see_why(secured: SecuredKafka) -> None:
    wrong = secured.cluster("flywheel-agents", kafka_password_file=None, kafka_password="wrong-one")
    async with Recorder("agent", wrong, options=Options(flush_timeout_s=0.2)) as recorder:
        with recorder.trajectory("s"):
            pass
        await eventually(lambda: "refuses flywheel-agents" in (recorder.stats.last_error or ""))
        assert recorder.stats.buffered == 2
