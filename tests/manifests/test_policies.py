"""The rules of the house for everything that runs in a cluster, whichever overlay it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.cluster.operands import operands
from tests.cluster.operators import PAGE, secrets_from_outside, secrets_of_operators
from tests.manifests.resources import PodTemplate, Resource, chooses, named, of_kind, one, pods, strings

PINNED = re.compile(r"^[\w.\-/]+:(?!latest)[\w.\-]*\d[\w.\-]*(@sha256:[0-9a-f]{64})?$")


def containers(resources: list[dict[str, Any]]) -> Iterator[tuple[PodTemplate, Any]]:
    for pod in pods(resources):
        for container in pod.containers:
            yield pod, container


def test_nothing_runs_as_root(resources: list[dict[str, Any]]) -> None:
    for pod in pods(resources):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] >= 1000, pod.owner
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
    assert len(list(pods(resources))) >= 8


def test_no_container_can_gain_rights_or_write_its_root(resources: list[dict[str, Any]]) -> None:
    for pod, container in containers(resources):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, pod.owner
        assert context["readOnlyRootFilesystem"] is True, pod.owner
        assert context["capabilities"] == {"drop": ["ALL"]}, pod.owner
        assert not context.get("privileged") and "runAsUser" not in context, pod.owner


def test_pods_that_operators_make_are_let_into_the_namespace(resources: list[dict[str, Any]]) -> None:
    """Strimzi hardens nothing by default: what the namespace asks of its pods must stand in our resources."""
    made = of_kind(list(operands(resources)), "Pod")
    for pod in made:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, named(pod)
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, named(pod)
        for container in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, named(pod)
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, named(pod)
    assert len(made) >= 3


def test_no_pod_shares_the_node(resources: list[dict[str, Any]]) -> None:
    for pod in pods(resources):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.owner
        assert [v for v in pod.spec.get("volumes", ()) if "hostPath" in v] == [], pod.owner


def test_every_container_asks_for_what_it_needs_and_has_a_limit_of_memory(resources: list[dict[str, Any]]) -> None:
    for pod, container in containers(resources):
        wanted = container["resources"]
        assert {"cpu", "memory"} <= wanted["requests"].keys(), pod.owner
        assert "memory" in wanted["limits"], pod.owner


def test_images_are_pinned(resources: list[dict[str, Any]]) -> None:
    unpinned = [c["image"] for _, c in containers(resources) if not PINNED.match(c["image"])]
    unpinned += [
        r["spec"]["imageName"] for r in of_kind(resources, "Cluster") if not PINNED.match(r["spec"]["imageName"])
    ]
    assert unpinned == []


def test_every_long_running_pod_is_probed(resources: list[dict[str, Any]]) -> None:
    for pod, container in containers(resources):
        if not pod.owner.startswith("Job/"):
            assert {"livenessProbe", "readinessProbe"} <= container.keys(), pod.owner
            ports = {port["name"] for port in container["ports"]}
            for probe in ("livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["port"] in ports, pod.owner


def test_no_pod_gets_a_token_and_each_has_an_account_of_its_own(resources: list[dict[str, Any]]) -> None:
    accounts = {r["metadata"]["name"]: r for r in of_kind(resources, "ServiceAccount")}
    for pod in pods(resources):
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        assert pod.spec["serviceAccountName"] in accounts, pod.owner
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    services = [pod.spec["serviceAccountName"] for pod in pods(resources) if pod.owner.startswith("Deployment/")]
    assert len(set(services)) == len(services)


def test_nobody_is_given_rights_over_the_cluster(resources: list[dict[str, Any]]) -> None:
    assert of_kind(resources, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_the_network_is_closed_but_for_what_is_opened(resources: list[dict[str, Any]]) -> None:
    closed = one(resources, "NetworkPolicy", "default-deny")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = [p for p in of_kind(resources, "NetworkPolicy") if p["spec"]["podSelector"]]
    for pod in pods(resources):
        assert any(chooses(p["spec"]["podSelector"], pod.labels) for p in policies), pod.owner
    for policy in policies:
        for rule in policy["spec"].get("ingress", ()):
            assert rule.get("from") and rule.get("ports"), f"{named(policy)} lets everybody in, or to every port"


def test_opened_ports_are_named_on_both_sides(resources: list[dict[str, Any]]) -> None:
    """A service that may go out to MinIO or Postgres may also come in there."""
    every = {pod.labels["app.kubernetes.io/name"]: pod.labels for pod in pods(resources)}
    goes_out = {
        name
        for name, labels in every.items()
        for policy in of_kind(resources, "NetworkPolicy")
        if chooses(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get("egress", ())
        for peer in rule.get("to", ())
        if peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name") == "minio"
    }
    comes_in = {
        name
        for name, labels in every.items()
        for rule in one(resources, "NetworkPolicy", "minio")["spec"]["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer and chooses(peer["podSelector"], labels)
    }
    assert goes_out == comes_in >= {"archiver", "trainer", "deployer"}


def test_no_secret_is_in_the_manifests(resources: list[dict[str, Any]]) -> None:
    assert of_kind(resources, "Secret") == []
    for _, container in containers(resources):
        for variable in container.get("env", ()):
            if re.search(r"PASSWORD|SECRET|TOKEN|POSTGRES$|ACCESS_KEY", variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}), variable["name"]
    for settings in of_kind(resources, "ConfigMap"):
        assert not re.search(
            r"(?i)(password|secret_key|token)\s*[=:]\s*\S", "\n".join(strings(settings.get("data", {})))
        )


def test_no_secret_is_made_by_hand_and_by_an_operator(resources: list[dict[str, Any]]) -> None:
    outside = secrets_from_outside(PAGE.read_text(encoding="utf-8"))
    assert len(outside) >= 4 and not outside.keys() & secrets_of_operators(resources).keys()


def test_every_service_survives_the_draining_of_a_node(resources: list[dict[str, Any]]) -> None:
    budgets = of_kind(resources, "PodDisruptionBudget")
    for pod in pods(resources):
        if not pod.owner.startswith("Job/"):
            (budget,) = [b for b in budgets if chooses(b["spec"]["selector"], pod.labels)]
            # Of a single replica too: a drain must not wait for ever.
            assert budget["spec"]["maxUnavailable"] == 1, pod.owner
            spread = pod.spec["topologySpreadConstraints"]
            assert spread, pod.owner
            if pod.owner.startswith("Deployment/"):
                # Else pods of the version that goes count too, and the new ones may end side by side.
                assert all(each["matchLabelKeys"] == ["pod-template-hash"] for each in spread), pod.owner


def test_what_is_scaled_automatically_states_no_number_itself(resources: list[dict[str, Any]]) -> None:
    scalers = of_kind(resources, "HorizontalPodAutoscaler", "ScaledObject")
    scaled = [resource["spec"]["scaleTargetRef"]["name"] for resource in scalers]
    assert len(set(scaled)) == len(scaled)
    for name in scaled:
        assert "replicas" not in one(resources, "Deployment", name)["spec"], name


def test_selectors_and_services_find_their_pods(resources: list[dict[str, Any]]) -> None:
    templates = list(pods(resources))
    for service in of_kind(resources, "Service"):
        found = [p for p in templates if chooses({"matchLabels": service["spec"]["selector"]}, p.labels)]
        ports = {port["name"] for pod in found for c in pod.containers for port in c.get("ports", ())}
        assert found and {port["targetPort"] for port in service["spec"]["ports"]} <= ports, named(service)


def test_every_monitor_finds_pods_and_their_port(resources: list[dict[str, Any]]) -> None:
    for monitor in ours_among(of_kind(resources, "PodMonitor")):
        found = [pod for pod in pods(resources) if chooses(monitor["spec"]["selector"], pod.labels)]
        assert {p.labels["app.kubernetes.io/name"] for p in found} == {
            "recorder", "archiver", "trainer", "deployer", "gateway",
        }  # fmt: skip
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert all(endpoint["port"] in {p["name"] for p in pod.containers[0]["ports"]} for pod in found)


def ours_among(monitors: list[Resource]) -> list[Resource]:
    """Leave out the monitors of pods that operators make."""
    return [m for m in monitors if "app.kubernetes.io/component" in m["spec"]["selector"].get("matchLabels", {})]
