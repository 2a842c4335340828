"""What the deployer does: announced models become versions and deployments, acknowledgements become rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from flywheel import metrics, tracing
from flywheel.artifacts import read_manifest
from flywheel.errors import IntegrityError, PoisonError
from flywheel.log import bound, get_logger
from flywheel.messages import Ack, ModelTrained
from flywheel.storage.objects import ObjectStore
from flywheel.storage.traces import traced_members
from flywheel.stream.outbox import OutboxRelay
from flywheel.stream.record import Record
from flywheel.tracing.messaging import context_of
from services.deployer import registry
from services.deployer.tracing import about_ack, about_model, lead_to_model

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deployer:
    """The handlers of the deployer. Each is safe to repeat on the same records."""

    pool: asyncpg.Pool
    store: ObjectStore
    relay: OutboxRelay

    async def on_models(self, records: Sequence[Record]) -> None:
        """Register announced models and deploy those that the rules deploy.

        One record, one transaction: the next decision depends on this one. Raises PoisonError for a message that is
        none, and IntegrityError for a model whose artifact is not what was announced.
        """
        for record in records:
            await self._on_model(ModelTrained.parse(record.value))

    async def on_acks(self, records: Sequence[Record]) -> None:
        """Store what agents said of deployments. Raises PoisonError for a message that is none."""
        acks = [Ack.parse(record.value) for record in records]
        await registry.record_acks(self.pool, acks)
        for ack, record in zip(acks, records, strict=True):
            metrics.ACKS.labels(ack.status).inc()
            if (context := context_of(record)) is not None:
                tracing.mark("acknowledge", parent=context, attributes=about_ack(ack))
            if ack.status == "failed":
                _log.warning(
                    "an agent could not load a version", agent_id=ack.agent_id, channel=ack.channel,
                    version=ack.version, running_version=ack.running_version, error=ack.error,
                )  # fmt: skip

    async def heal(self) -> None:
        """Announce again what is deployed, for a Kafka that lost it; see :func:`registry.announce_active`."""
        for update in await registry.announce_active(self.pool):
            metrics.DEPLOYED_NUMBER.labels(update.channel).set(update.number)
            _log.info("announced what is deployed", channel=update.channel, version=update.version)
        self.relay.nudge()

    async def measure(self) -> None:
        """Refresh the gauge of agents by version."""
        running = await registry.agents_by_version(self.pool)
        metrics.AGENTS_RUNNING.clear()
        for (channel, version), agents in running.items():
            metrics.AGENTS_RUNNING.labels(channel, version).set(agents)

    async def _on_model(self, model: ModelTrained) -> None:
        with bound(model_id=model.model_id, channel=model.channel):
            if await registry.is_registered(self.pool, model.model_id):
                _log.info("announced again, nothing to do")
                return
            await asyncio.to_thread(check_artifact, self.store, model)
            done = await registry.register(self.pool, model)
            if done is None:
                return
            decision = done.decision
            tracing.say(about := about_model(model, done))
            metrics.MODELS_REGISTERED.labels(model.origin).inc()
            _log.info(
                "registered", version=str(decision.version), number=decision.number, origin=model.origin,
                parent_version=model.parent_version, batch_id=model.batch_id, job_id=model.job_id,
            )  # fmt: skip
            if done.update is None:
                metrics.MODELS_WITHHELD.inc()
                _log.warning("not deployed", version=str(decision.version), reason=decision.reason)
            else:
                metrics.DEPLOYED_NUMBER.labels(model.channel).set(decision.number)
                _log.info(
                    "deployed", version=str(decision.version), deployment_id=done.update.deployment_id,
                    reason=decision.reason,
                )  # fmt: skip
                self.relay.nudge()
            if model.batch_id is not None:
                await lead_to_model(await traced_members(self.pool, model.batch_id), about)


def check_artifact(store: ObjectStore, model: ModelTrained) -> None:
    """Check that the announced artifact is the model's own and that its manifest lies in the store, unchanged.

    A small read: the manifest holds the digest of every file, and agents verify those when they fetch.
    Raises IntegrityError, and whatever the store raises when it is away.
    """
    artifact = model.artifact
    if artifact.model_id != model.model_id:
        raise IntegrityError(f"the artifact announced for {model.model_id} belongs to {artifact.model_id}")
    try:
        read_manifest(store, artifact)
    except IntegrityError:
        raise
    except (PoisonError, ValueError) as error:  # nothing of that name, or no name at all
        raise IntegrityError(f"{artifact.manifest[:200]}: {error}") from error
