"""The run: what is done to the cluster, in which order, and what is asked in between."""

from __future__ import annotations

from pathlib import Path

from tests.cluster import accepting, changing, disrupting, gpu, limits, refusing, rights, running
from tests.cluster.kubectl import documents
from tests.cluster.nodes import nodes, storage_class
from tests.cluster.programs import Programs
from tests.cluster.report import Report
from tests.cluster.world import OVERLAYS, TRACING, World, eventually, is_ready

DEV, PROD, GPU = (OVERLAYS / name for name in ("dev", "prod", "gpu"))
NEXT = "0.2.0"
#: Those with more than one replica at their least.
_SPREAD = ("recorder", "gateway", "minio")


def scenario(world: World, report: Report, programs: Programs, definitions: Path) -> None:
    """Ask everything. Raises StackError when the control plane ends meanwhile."""
    ask = report.check
    ask("cluster", "kwok's nodes are ready, two zones, one with a GPU", _nodes_are_ready, world, programs)
    ask("cluster", "the operators' definitions are served", accepting.operators_are_there, world, definitions)
    ask("cluster", "secrets are made: from outside, and the operators'", accepting.secrets_are_made, world, PROD)
    _overlay(world, report, "dev", DEV)
    ask(
        "dev→prod",
        "dev's store is not converted: refused by name",
        changing.the_small_store_is_not_converted,
        world,
        PROD,
    )
    _overlay(world, report, "prod", PROD)
    _scaled(world, report, "prod", PROD)
    _prod(world, report)
    _overlay(world, report, "gpu", GPU)
    _gpu(world, report)
    _scaled(world, report, "gpu", GPU)
    _versions(world, report)
    ask("gpu→prod", "back without a GPU, as the page says", changing.back_to_a_trainer_without_gpu, world)
    ask("prod→gpu", "and on the GPU again", accepting.applied, world, GPU)
    ask("prod→gpu", "every workload becomes ready, every job completes", running.workloads_are_ready, world)
    ask("away", "deleted as the page says, nothing is left", changing.everything_goes, world, GPU)


def _nodes_are_ready(world: World, programs: Programs) -> str:
    wanted = nodes()
    world.kubectl("create", "-f", "-", given=documents([*wanted, storage_class(programs)]))
    eventually(lambda: all(is_ready(node) for node in world.kubectl.items("nodes")), "every node is ready")
    return ", ".join(node["metadata"]["name"] for node in wanted)


def _overlay(world: World, report: Report, name: str, folder: Path) -> None:
    """Ask what holds for every overlay, on whatever was there before."""
    ask = report.check
    ask(name, "every resource is accepted", accepting.applied, world, folder)
    ask(name, "the operators' pods are let in and find a node", accepting.operands_are_let_in, world, folder)
    ask(name, "every workload becomes ready, every job completes", running.workloads_are_ready, world)
    ask(name, "what is there is what was applied", accepting.no_difference, world, folder)
    ask(name, "what pods and operators refer to is there, with its keys", running.references_exist, world)
    ask(name, "each Service finds ready pods", running.services_have_endpoints, world)
    ask(name, "nothing of what was before is stuck", changing.nothing_is_stuck, world)


def _scaled(world: World, report: Report, name: str, folder: Path) -> None:
    ask = report.check
    ask(name, "autoscalers bring each to its least replicas", running.autoscalers_lift_to_their_least, world, folder)
    ask(name, "applying it again leaves their numbers alone", accepting.applied_again, world, folder)


def _prod(world: World, report: Report) -> None:
    ask = report.check
    ask("prod", "replicas stand in both zones", running.replicas_are_in_both_zones, world, _SPREAD)
    ask("prod", "nothing stands on the GPU's node", running.only_the_trainer_is_on_the_gpu_node, world)
    ask("prod", "no pod gets a token", running.pods_have_no_token, world)
    ask("prod", "service accounts may do nothing", rights.accounts_may_do_nothing, world)
    ask("prod", "the network is closed but for what is opened", accepting.network_is_closed, world)
    ask("prod", "what is wrong is refused by the name of its field", refusing.what_is_wrong_is_refused, world, PROD)
    ask("prod", "pods that are not safe are refused", refusing.unsafe_pods_are_refused, world)
    ask("prod", "a container that names no limits gets some", limits.a_pod_that_says_nothing_gets_limits, world)
    ask("prod", "more than the quota is refused", limits.more_than_the_quota_is_refused, world, gpu=False)
    ask("prod", "everything at its most fits the quota and the nodes", limits.everything_at_its_most_fits, world, PROD)
    ask("prod", "every workload may lose one pod", disrupting.every_workload_has_a_budget, world)
    ask("prod", "a second eviction is refused", disrupting.budgets_refuse_a_second_eviction, world, "recorder")
    ask("prod", "a node can be drained", disrupting.a_node_can_be_drained, world)


def _gpu(world: World, report: Report) -> None:
    ask = report.check
    ask("gpu", "without a batch there is no trainer", gpu.nothing_waits_nobody_trains, world)
    ask("gpu", "with one, the trainer lands on the GPU", gpu.the_trainer_lands_on_the_gpu, world)
    ask("gpu", "only the trainer stands on the GPU's node", running.only_the_trainer_is_on_the_gpu_node, world)
    ask("gpu", "when others have the GPU, it waits and takes nothing", gpu.it_waits_when_others_have_the_gpu, world)
    ask("gpu", "a second GPU is refused by the quota", limits.more_than_the_quota_is_refused, world, gpu=True)


def _versions(world: World, report: Report) -> None:
    """From one version to the next, by overlays as people write them on ours."""
    images = [{"name": f"flywheel/{name}", "newTag": NEXT} for name in ("services", "trainer")]
    upgraded = world.variant("next", GPU, images=images)
    traced = world.variant("traced", upgraded, TRACING)
    broken = changing.broken(world, traced)
    ask = report.check
    ask("upgrade", "the old job alone stands in the way", changing.a_finished_job_is_replaced, world, upgraded)
    ask("upgrade", "another version rolls out, none falls below", changing.rolls, world, upgraded, NEXT)
    ask("upgrade", "replicas stand in both zones again", running.replicas_are_in_both_zones, world, _SPREAD)
    ask("upgrade", "tracing switched on rolls every service", changing.a_changed_setting_rolls, world, traced)
    ask(
        "upgrade",
        "a version that is never ready harms nobody",
        changing.a_bad_version_harms_nobody,
        world,
        broken,
        traced,
    )
