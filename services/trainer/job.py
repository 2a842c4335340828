"""One training job, from announced batch to stored model. Runs in the worker process.

Verify and read the batch, make rows and advantages, train from the parent, store the result with its lineage.
"""

from __future__ import annotations

import importlib.metadata
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from flywheel import artifacts
from flywheel.batches import read_batch
from flywheel.errors import PoisonError
from flywheel.settings import TrainerSettings
from flywheel.storage.objects import ObjectStore
from services.trainer import adapters, models, recompute, rows, training
from services.trainer.advantages import Scored, group_advantages, held_against, observed
from services.trainer.baseline.estimate import Baselines, Told
from services.trainer.calls import Rules
from services.trainer.ledger import Counts, Ledger
from services.trainer.protocol import Done, Order, Skipped, Stage, Steps
from services.trainer.rank.crew import Crew
from services.trainer.rendering import Renderer

Reporter = Callable[[Stage | Steps], None]

#: How the service runs. Every other setting changes what is learned, and the lineage has it.
NOT_LEARNING = frozenset({"metrics_port", "attempts", "lease_s", "poll_s", "registration_wait_s", "processes"})
_LIBRARIES = ("torch", "trl", "transformers", "accelerate", "peft")


def run(
    order: Order,
    settings: TrainerSettings,
    store: ObjectStore,
    cache: Path,
    ledger: Ledger,
    report: Reporter,
    crew: Crew,
) -> Done | Skipped:
    """Do the job and return what to announce, or that there was nothing to learn; ``ledger`` is filled on the way,
    also when the job fails.

    ``cache`` keeps the fetched parent and nothing older; ``crew`` trains with us. Raises PoisonError (IntegrityError
    among them) for a batch or parent that can never be trained on, and errors of the store as they are.
    """
    began = time.monotonic()
    report(Stage(status="preparing"))
    parent = artifacts.fetch(store, order.parent.artifact, cache)
    _keep_only(parent)
    base, tokenizer = models.load(parent, training.frozen_dtype(settings))
    renderer = Renderer(tokenizer, models.ends(base, tokenizer))
    rules = Rules(
        current=order.parent.policy,
        policies=order.policies,
        max_staleness=settings.max_staleness,
        temperature=settings.temperature,
        vocabulary=models.vocabulary(base),
        started_at=order.started_at,
        max_tokens=models.longest(base),
        max_age_s=settings.max_age_s,
        restore=None if settings.text_only == "quarantine" else renderer.restore,
        supervise=settings.text_only == "supervised",
    )
    built, scored = _read(order, store, rules, ledger)
    told, baselines = _compare(built, scored, order, settings, ledger)
    batch = rows.learnable(built, rules, ledger)
    if (silent := _no_signal(built, batch, ledger)) is not None:
        return Skipped(reason="no_signal", message=silent, counts=ledger.as_dict(), told=told)
    training.to_device(base, settings)
    recompute.fill(base, batch, settings.temperature)
    model = adapters.put_on(base, settings)
    prepared = time.monotonic()

    report(Stage(status="training"))
    with crew.training(parent, rows=batch):
        figures = training.train(
            model, tokenizer, batch, settings, lambda done, total: report(Steps(done=done, total=total))
        )
    models.require_finite(model)

    report(Stage(status="uploading"))
    trained = time.monotonic()
    counts = ledger.as_dict()
    with tempfile.TemporaryDirectory(prefix="flywheel-model-") as folder:
        models.save(model, parent, Path(folder), dtype=settings.save_dtype, keep_adapter=settings.lora_keep)
        moved = models.moved(parent, Path(folder))
        artifact = artifacts.upload(store, Path(folder), order.model_id, _lineage(order, settings, counts, baselines))
    metrics = {
        **figures,
        "reward_mean": round(fmean(one.reward for one in scored.values()), 6),
        "trajectories": len(scored),
        "rows": len(batch),
        "weights_moved": round(moved, 6),
        "prepare_seconds": round(prepared - began, 3),
        "upload_seconds": round(time.monotonic() - trained, 3),
        "seconds": round(time.monotonic() - began, 3),
        "peak_rss_mb": _peak_rss_mb(),
    }
    return Done(artifact=artifact, counts=counts, metrics=metrics, told=told)


def libraries() -> dict[str, str]:
    """Return the versions of what training stands on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _read(order: Order, store: ObjectStore, rules: Rules, ledger: Ledger) -> tuple[list[rows.Row], dict[str, Scored]]:
    """Return the rows of the batch, and what each trajectory that has some is worth."""
    manifest, trajectories = read_batch(store, order.manifest, order.manifest_sha256)
    if manifest.batch_id != order.batch_id:
        raise PoisonError("other_batch", f"{order.manifest} describes {manifest.batch_id}, not {order.batch_id}")
    built: list[rows.Row] = []
    scored: dict[str, Scored] = {}
    scores, unscored = (order.scores.values, order.scores.unscored) if order.scores else (None, {})
    for trajectory in trajectories:
        if made := rows.build(trajectory, rules, ledger, scores, unscored):
            reward = trajectory.total_reward if scores is None else scores[trajectory.trajectory_id]
            assert reward is not None, "a trajectory without score gives no rows"
            built += made
            group, scenario = trajectory.group_id or trajectory.trajectory_id, trajectory.scenario_id or ""
            scorer = order.scores.scorers.get(trajectory.trajectory_id, "") if order.scores else "recorded"
            scored[trajectory.trajectory_id] = Scored(group, reward, scenario, scorer)
    ledger.scoring.update(order.scores.counts if order.scores else {"recorded": len(scored)})
    return built, scored


def _compare(
    built: list[rows.Row], scored: dict[str, Scored], order: Order, settings: TrainerSettings, ledger: Ledger
) -> tuple[Told, Baselines]:
    """Give the rows their advantages; return what the rewards tell the baselines, and which of these were used."""
    alone = settings.singletons == "baseline"
    baselines: Baselines = order.baselines if alone else {}
    advantages, groups = group_advantages(scored, baselines, settings.baseline_min_weight)
    ledger.groups.update(groups)
    for row in built:
        row.advantage = advantages[row.trajectory_id]
    told = Told(observed=observed(scored), decay=settings.baseline_decay) if alone else Told()
    return told, held_against(scored, baselines, settings.baseline_min_weight)


def _no_signal(built: list[rows.Row], batch: list[rows.Row], ledger: Ledger) -> str | None:
    """Return why nothing can be learned from a sound batch; None when something can.

    ``built`` are the batch's rows, ``batch`` those of them that are trained on.
    Raises PoisonError ``no_trainable_rows`` for one without rows, unless nothing but the lack of a comparison is to
    blame.
    """
    if any(row.advantage for row in batch):
        return None
    if built:
        used = ledger.trajectories["used"]
        what = "no advantage is above 0" if any(row.advantage for row in built) else "every advantage is 0"
        return f"nothing to learn: {what} in {used} trajectories ({_words(ledger.groups)})"
    if set(ledger.trajectories_dropped) == {"nothing_to_compare"}:
        return f"nothing to learn: {_words(ledger.trajectories_dropped)}"
    raise PoisonError("no_trainable_rows", f"no trainable rows: {_why(ledger)}")


def _why(ledger: Ledger) -> str:
    dropped = {
        "trajectories": ledger.trajectories_dropped,
        "calls": ledger.calls_dropped,
        "rows": ledger.rows_dropped,
    }
    parts = [f"{name} dropped: {_words(counts)}" for name, counts in dropped.items() if counts]
    return "; ".join(parts) or "the batch is empty"


def _words(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _lineage(order: Order, settings: TrainerSettings, counts: Counts, baselines: Baselines) -> dict[str, Any]:
    return {
        "origin": "trained",
        "channel": order.channel,
        "job_id": order.job_id,
        "batch_id": order.batch_id,
        "batch_manifest": order.manifest,
        "batch_manifest_sha256": order.manifest_sha256,
        "parent_version": order.parent.version,
        "parent_model_id": order.parent.artifact.model_id,
        "parent_manifest_sha256": order.parent.artifact.manifest_sha256,
        "base_model": order.parent.base_model,
        "counts": counts,
        "baselines": {
            scorer: {scenario: known.model_dump() for scenario, known in mine.items()}
            for scorer, mine in baselines.items()
        },
        "scoring": order.scores.about if order.scores else {"scorers": ["recorded"]},
        "settings": learning_settings(settings),
        "libraries": libraries(),
    }


def learning_settings(settings: TrainerSettings) -> dict[str, Any]:
    """Return the settings that the weights depend on, ready for JSON."""
    return settings.model_dump(mode="json", exclude=set(NOT_LEARNING))


def _keep_only(folder: Path) -> None:
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _peak_rss_mb() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
