"""A batch to scores: read it, leave out what teaches nothing, have each group scored, write down how.

Reading and verifying happen in a thread, judging on the loop; a heartbeat is never far away. Scores are written group
by group, so a try that was cut short repeats nothing that was paid for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import asyncpg
import httpx

from flywheel import metrics
from flywheel.batches import read_batch
from flywheel.errors import PoisonError
from flywheel.log import get_logger
from flywheel.scoring_settings import ScoringRule, ScoringSettings
from flywheel.storage.objects import ObjectStore
from flywheel.trajectory import Trajectory
from services.trainer.protocol import Order, Scores
from services.trainer.rows import excluded
from services.trainer.scoring.asking import Asking, Durably
from services.trainer.scoring.choose import only_recorded, rule_for
from services.trainer.scoring.client import JudgeClient, open_http
from services.trainer.scoring.heuristic import Heuristic
from services.trainer.scoring.port import Group, GroupScores, Scorer, Unscored, WithFallback
from services.trainer.scoring.rewards import Recorded, Weighted
from services.trainer.scoring.ruler import Ruler
from services.trainer.scoring.store import JudgeCalls, write_judgments
from services.trainer.scoring.together import together

_log = get_logger(__name__)

#: Hears how many groups of how many are scored.
Listener = Callable[[int, int], None]


class BatchScoring:
    """Scores the batches that need more than their recorded rewards. ``text_counts``: calls may be trained on of which
    only text was recorded.
    """

    def __init__(
        self, pool: asyncpg.Pool, store: ObjectStore, settings: ScoringSettings, durably: Durably, *,
        text_counts: bool = False,
    ) -> None:  # fmt: skip
        self._text_counts = text_counts
        self._pool = pool
        self._store = store
        self._settings = settings
        self._durably = durably

    def needed(self, channel: str) -> bool:
        """Return whether the channel's batches have to be scored here."""
        return not only_recorded(self._settings, channel)

    async def score(self, order: Order, listen: Listener) -> Scores:
        """Score the batch. No judge's failure is raised; raises PoisonError (IntegrityError among them) for a batch
        that can never be read, and errors of the store as they are.
        """
        groups, counts, unscored = await asyncio.to_thread(_read, self._store, order, text_counts=self._text_counts)
        for reason in unscored.values():
            metrics.UNSCORED.labels(reason).inc()
        listen(0, len(groups))
        async with open_http(self._settings) as http:
            scorers = _Scorers(self._settings, order, self._pool, http, self._durably)
            done = 0

            async def one(group: Group) -> GroupScores:
                nonlocal done
                found = await self._one(group, scorers, order)
                done += 1
                listen(done, len(groups))
                return found

            found = await together([partial(one, group) for group in groups], self._settings.judge_concurrency)
        values: dict[str, float] = {}
        gave: dict[str, str] = {}
        for result in found:
            values |= {name: score.value for name, score in result.scores.items()}
            gave |= {name: score.scorer for name, score in result.scores.items()}
            unscored |= result.unscored
            _count(result, counts)
        return Scores(
            values=values, unscored=unscored, scorers=gave, counts=dict(sorted(counts.items())),
            about=scorers.about(found),
        )  # fmt: skip

    async def _one(self, group: Group, scorers: _Scorers, order: Order) -> GroupScores:
        scorer = scorers.of(group)
        found = await scorer.score(group)
        if found.fallback:
            metrics.JUDGE_FALLBACKS.labels(found.fallback).inc()
            _log.warning("judge did not score a group", group_id=group.group_id, reason=found.fallback)
        await self._durably(
            lambda: write_judgments(
                self._pool, order.batch_id, group.group_id, found.scores, found.unscored, scorer.name, found.fallback
            )
        )
        return found


class _Scorers:
    """The scorers of one batch, one for each rule in use."""

    def __init__(
        self, settings: ScoringSettings, order: Order, pool: asyncpg.Pool, http: httpx.AsyncClient, durably: Durably
    ) -> None:
        self._settings, self._order, self._pool, self._http, self._durably = settings, order, pool, http, durably
        self._made: dict[str, Scorer] = {}
        self._asking: Asking | None = None

    def of(self, group: Group) -> Scorer:
        """Return the scorer for the group."""
        rule = rule_for(self._settings, self._order.channel, group.trajectories[0].scenario_id)
        key = rule.model_dump_json(exclude={"channel", "scenario"})
        if key not in self._made:
            self._made[key] = self._make(rule)
        return self._made[key]

    def about(self, found: Iterable[GroupScores]) -> dict[str, Any]:
        """Return what a model's lineage says of its scores."""
        scores = [score for result in found for score in result.scores.values()]
        judged = [score.judged for score in scores if score.judged]
        return {
            "scorers": sorted({score.scorer for score in scores}),
            "judge_models": sorted({each.model for each in judged}),
            "prompt_hashes": sorted({each.prompt_hash for each in judged}),
            "passes": self._settings.judge_passes if judged else 0,
        }

    def _make(self, rule: ScoringRule) -> Scorer:
        if rule.scorer != "ruler":
            return self._plain(rule.scorer, rule.weights)
        if self._asking is None:
            calls = JudgeCalls(self._pool, self._order.batch_id, self._settings)
            self._asking = Asking(JudgeClient(self._settings, self._http), calls, self._settings, self._durably)
        name = self._settings.fallback
        fallback = None if name == "none" else self._plain(name, rule.weights)
        return WithFallback(Ruler(self._asking, self._settings, rule.rubric), fallback)

    def _plain(self, name: str, weights: dict[str, float]) -> Scorer:
        if name == "weighted":
            return Weighted(weights)
        return Heuristic(self._settings.pnl_scale) if name == "heuristic" else Recorded()


def _read(store: ObjectStore, order: Order, *, text_counts: bool) -> tuple[list[Group], Counter[str], dict[str, str]]:
    """Return the groups to score, what was left out by reason, and the trajectories that have nothing to train on."""
    manifest, trajectories = read_batch(store, order.manifest, order.manifest_sha256)
    if manifest.batch_id != order.batch_id:
        raise PoisonError("other_batch", f"{order.manifest} describes {manifest.batch_id}, not {order.batch_id}")
    groups: dict[str, list[Trajectory]] = {}
    counts: Counter[str] = Counter()
    unscored: dict[str, str] = {}
    for trajectory in trajectories:
        if (reason := excluded(trajectory)) is not None:
            counts[f"excluded_{reason}"] += 1
        elif not any(call.trainable or text_counts for call in trajectory.all_llm_calls()):
            unscored[trajectory.trajectory_id] = Unscored.NO_TRAINABLE_CALLS
            counts[f"unscored_{Unscored.NO_TRAINABLE_CALLS}"] += 1
        else:
            groups.setdefault(trajectory.group_id or trajectory.trajectory_id, []).append(_without_tokens(trajectory))
    return [Group(group_id, members) for group_id, members in groups.items()], counts, unscored


def _without_tokens(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory without token ids and raw events: most of its memory, and no scorer reads them."""
    bare = {"prompt_token_ids": None, "completion_token_ids": None, "completion_logprobs": None}
    steps = [
        step.model_copy(update={"llm_calls": [call.model_copy(update=bare) for call in step.llm_calls]})
        for step in trajectory.steps
    ]
    outside = [call.model_copy(update=bare) for call in trajectory.outside_llm_calls]
    return trajectory.model_copy(update={"steps": steps, "outside_llm_calls": outside, "events": ()})


def _count(result: GroupScores, counts: Counter[str]) -> None:
    for score in result.scores.values():
        counts[score.scorer] += 1
        metrics.SCORED.labels(score.scorer).inc()
        if score.judged and score.judged.cached:
            counts["cached"] += 1
        if score.fallback:
            counts[f"fallback_{score.fallback}"] += 1
    for reason in result.unscored.values():
        counts[f"unscored_{reason}"] += 1
        metrics.UNSCORED.labels(reason).inc()
