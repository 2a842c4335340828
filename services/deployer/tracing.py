"""What the deployer's spans say of models and acknowledgements; and the last mark in the trace of a trajectory."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel import tracing
from flywheel.messages import Ack, ModelTrained
from services.deployer.registry import Registration


def about_model(model: ModelTrained, done: Registration) -> dict[str, str]:
    """Return what became of an announced model."""
    said = {
        "flywheel.model.id": model.model_id,
        "flywheel.model.version": str(done.decision.version),
        "flywheel.model.origin": model.origin,
        "flywheel.channel": model.channel,
        "flywheel.batch.id": model.batch_id,
        "flywheel.job.id": model.job_id,
        "flywheel.deployment.id": done.update.deployment_id if done.update else None,
        "flywheel.deployment.reason": done.decision.reason,
    }
    return {name: value for name, value in said.items() if value is not None}


async def lead_to_model(members: Mapping[str, str], about: Mapping[str, str]) -> None:
    """End the way of each traced trajectory at the model that it led to, with a link to how that was made."""
    if (here := tracing.current()) is not None:
        await tracing.mark_all("led to model", members.values(), links=[(here, about)], attributes=about)


def about_ack(ack: Ack) -> dict[str, str | float]:
    """Return what an agent said of a version."""
    said: dict[str, str | float | None] = {
        "flywheel.agent.id": ack.agent_id,
        "flywheel.channel": ack.channel,
        "flywheel.model.version": ack.version,
        "flywheel.deployment.id": ack.deployment_id,
        "flywheel.ack.status": ack.status,
        "flywheel.ack.load_seconds": ack.load_seconds,
        "flywheel.ack.running_version": ack.running_version,
    }
    return {name: value for name, value in said.items() if value is not None}
