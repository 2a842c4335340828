"""RULER: an LLM judge compares the attempts of one group with each other and scores them from 0 to 1.

Equal attempts are shown once and get the same score; what all have in common is shown once; each pass shows another
order, and a score is the mean over the passes. A pass of which a part could not be judged is left out; with no pass
left, the judge failed on the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from flywheel.scoring_settings import ScoringSettings
from services.trainer.scoring.asking import Asking, Reply
from services.trainer.scoring.dossier import Dossier, dossier
from services.trainer.scoring.port import Group, GroupScores, Judged, JudgeFailed, JudgeFailure, Score, Unscored
from services.trainer.scoring.prompt import Question, orders, question, shared_items
from services.trainer.scoring.together import together
from services.trainer.scoring.verdict import average, normalised, ranks


class Ruler:
    """Scores groups by one judge and one rubric."""

    name = "ruler"

    def __init__(self, asking: Asking, settings: ScoringSettings, rubric: str) -> None:
        self._asking = asking
        self._settings = settings
        self._rubric = rubric

    async def score(self, group: Group) -> GroupScores:
        """Score every trajectory of the group; none when there are not two that differ. Raises JudgeFailed."""
        scenarios = {trajectory.scenario_id for trajectory in group.trajectories}
        if len(scenarios) > 1:
            raise JudgeFailed(JudgeFailure.MIXED_SCENARIOS, f"the group has {len(scenarios)} scenarios, not one goal")
        shown, asked = await asyncio.to_thread(self._prepare, group)
        if not asked:
            return GroupScores(unscored=dict.fromkeys(shown, Unscored.NOTHING_TO_COMPARE))
        passes = await self._passes(asked)
        replies = [reply for replies in passes for reply in replies]
        means = average([{key: o.score for r in replies for key, o in r.opinions.items()} for replies in passes])
        rank, stretched = ranks(means), normalised(means)
        found = GroupScores()
        for trajectory_id, each in shown.items():
            told = [reply for reply in replies if each.key in reply.opinions]
            opinions = [reply.opinions[each.key] for reply in told]
            judged = Judged(
                model=self._settings.judge_model or "",
                prompt_hash=asked[0][0].prompt_hash,
                content_key=each.key,
                rank=rank[each.key],
                normalised=stretched[each.key],
                reasoning=tuple(opinion.explanation for opinion in opinions),
                calls=tuple(reply.call_id for reply in told),
                cached=all(reply.cached for reply in told),
            )
            spread = max(o.score for o in opinions) - min(o.score for o in opinions)
            components = {"passes": float(len(told)), "spread": spread}
            found.scores[trajectory_id] = Score(means[each.key], self.name, components, judged)
        return found

    def _prepare(self, group: Group) -> tuple[dict[str, Dossier], list[list[Question]]]:
        """Return what is shown of each trajectory, and the questions of each pass; none with nothing to compare."""
        sees = self._settings.judge_sees_rewards
        shown = {t.trajectory_id: dossier(t, rewards=sees) for t in group.trajectories}
        distinct = {each.key: each for each in shown.values()}
        if len(distinct) < 2:
            return shown, []
        shared = shared_items(list(distinct.values()))
        passes = orders(list(distinct), self._settings.judge_passes, self._settings.judge_group_size)
        return shown, [[self._question([distinct[key] for key in part], shared) for part in parts] for parts in passes]

    async def _pass(self, parts: list[Question]) -> list[Reply] | JudgeFailed:
        try:
            return [await self._asking.ask(part) for part in parts]
        except JudgeFailed as failed:
            return failed

    def _question(self, order: Sequence[Dossier], shared: int) -> Question:
        return question(
            order,
            shared,
            rubric=self._rubric,
            context_tokens=self._settings.judge_context_tokens,
            answer_tokens=self._settings.judge_answer_tokens,
        )

    async def _passes(self, asked: list[list[Question]]) -> list[list[Reply]]:
        """Return the replies of each pass that was answered whole. Raises JudgeFailed when none was."""
        results = await together([partial(self._pass, parts) for parts in asked], limit=len(asked))
        if passes := [result for result in results if not isinstance(result, JudgeFailed)]:
            return passes
        raise next(result for result in results if isinstance(result, JudgeFailed))
