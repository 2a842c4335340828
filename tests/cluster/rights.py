"""Who may do what: our service accounts nothing at all, since nothing of ours talks to Kubernetes."""

from __future__ import annotations

from typing import Any

from tests.cluster.kubectl import NAMESPACE, KubectlError, documents
from tests.cluster.world import World

#: What every account may do: ask who it is and what it may, and read the public certificates that the cluster trusts.
_EVERYBODY = {
    "selfsubjectreviews": {"create"},
    "selfsubjectaccessreviews": {"create"},
    "selfsubjectrulesreviews": {"create"},
    "clustertrustbundles": {"get", "list", "watch"},
}
#: What somebody who took over a pod would try first.
_TRIED = (("get", "secrets"), ("create", "pods"), ("create", "pods/exec"), ("patch", "deployments"))


def accounts_may_do_nothing(world: World) -> str:
    """No account of the namespace may do more than everybody; asked the same, an administrator may do it all."""
    accounts = [account["metadata"]["name"] for account in world.kubectl.items("serviceaccounts")]
    for account in accounts:
        rules = _rules(world, account)
        assert rules["resourceRules"], f"nothing is known of {account}"
        for rule in rules["resourceRules"]:
            for resource in rule["resources"]:
                more = set(rule["verbs"]) - _EVERYBODY.get(resource, set())
                assert not more, f"{account} may {', '.join(more)} {resource}"
        paths = {verb for rule in rules["nonResourceRules"] for verb in rule["verbs"]}
        assert paths <= {"get"}, f"{account} may {paths} paths"
        for verb, resource in _TRIED:
            assert not can(world, verb, resource, *_as(account)), f"{account} may {verb} {resource}"
    for verb, resource in _TRIED:
        assert can(world, verb, resource), f"not even an administrator may {verb} {resource}"
    return f"{', '.join(accounts)}: nothing of what an administrator may"


def can(world: World, verb: str, resource: str, *who: str) -> bool:
    """Ask ``kubectl auth can-i``. Raises KubectlError where it does not answer yes or no."""
    try:
        return world.kubectl("auth", "can-i", verb, resource, *who).splitlines()[-1] == "yes"
    except KubectlError as error:
        if str(error).splitlines()[-1].startswith("no"):
            return False
        raise


def _rules(world: World, account: str) -> dict[str, Any]:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": NAMESPACE},
    }
    return world.kubectl.json("create", "--validate=false", "-f", "-", *_as(account), given=documents([review]))[
        "status"
    ]


def _as(account: str) -> tuple[str, ...]:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated")
    return (f"--as=system:serviceaccount:{NAMESPACE}:{account}", *(f"--as-group={group}" for group in groups))
