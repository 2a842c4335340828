"""How Kafka is reached in the cluster: by one door, with TLS, by users of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local.parts import SERVICES
from tests.manifests.resources import Resource, chooses, one
from tests.manifests.test_agrees_with_code import environment


def mounted(spec: Resource, path: str) -> dict[str, Any]:
    """Return the volume that a file of a service's is on."""
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if Path(path).is_relative_to(m["mountPath"])]
    assert "subPath" not in mount  # such a file would never be renewed
    (volume,) = [v for v in spec["volumes"] if v["name"] == mount["name"]]
    return volume


def test_nobody_comes_to_kafka_without_a_name(resources: list[dict[str, Any]]) -> None:
    kafka = one(resources, "Kafka", "flywheel")["spec"]["kafka"]
    (listener,) = kafka["listeners"]
    assert listener["tls"] is True and listener["authentication"] == {"type": "scram-sha-512"}
    assert kafka["authorization"] == {"type": "simple"}
    policy = one(resources, "NetworkPolicy", "services-to-kafka")["spec"]
    (rule,) = policy["egress"]
    assert [port["port"] for port in rule["ports"]] == [listener["port"]]
    for labels in ({"app.kubernetes.io/name": name} for name in SERVICES):
        peers = [peer["podSelector"] for peer in listener["networkPolicyPeers"] if "podSelector" in peer]
        assert any(chooses(peer, labels) for peer in peers) and chooses(policy["podSelector"], labels)


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_comes_to_kafka_as_its_own_user(resources: list[dict[str, Any]], service: str) -> None:
    given = environment(resources, service)
    (listener,) = one(resources, "Kafka", "flywheel")["spec"]["kafka"]["listeners"]
    assert given["FLYWHEEL_KAFKA"] == f"flywheel-kafka-bootstrap:{listener['port']}"
    assert given["FLYWHEEL_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    user = one(resources, "KafkaUser", given["FLYWHEEL_KAFKA_USER"])["metadata"]["name"]
    assert user == f"flywheel-{service}"
    spec = one(resources, "Deployment", service)["spec"]["template"]["spec"]
    password = Path(given["FLYWHEEL_KAFKA_PASSWORD_FILE"])
    assert password.name == "password" and mounted(spec, str(password))["secret"]["secretName"] == user
    assert mounted(spec, given["FLYWHEEL_KAFKA_CA"])["secret"] == {"secretName": "flywheel-cluster-ca-cert"}
