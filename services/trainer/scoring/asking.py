"""One question to the judge until it is answered: from the cache, or asked, asked again, corrected, never beyond the
budget.

Requests for one question are bounded: (1 + corrections) x (1 + retries). When the judge gives nothing for several
questions in a row, the rest of the batch does not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flywheel import metrics
from flywheel.log import get_logger
from flywheel.retry import backoff
from flywheel.scoring_settings import ScoringSettings
from services.trainer.scoring.client import Answer, JudgeClient, NoAnswer
from services.trainer.scoring.port import JudgeFailed, JudgeFailure
from services.trainer.scoring.prompt import Question, estimate_tokens
from services.trainer.scoring.store import Cost, JudgeCalls
from services.trainer.scoring.tracing import judge_span, judged
from services.trainer.scoring.verdict import Opinion, Unusable, correction, parse

_log = get_logger(__name__)

Result = TypeVar("Result")
#: Runs a database write until it succeeds.
Durably = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]

#: A judge that asks for a longer pause than this, in seconds, counts as away.
LONGEST_PAUSE_S = 60.0
#: Questions in a row without any answer, after which the judge counts as away for the rest of the batch.
GIVE_UP_AFTER = 3


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said to one question, by content key, and the call that holds it."""

    opinions: Mapping[str, Opinion]
    call_id: str
    cached: bool


class Asking:
    """Asks the questions of one batch. Safe to use by many tasks."""

    def __init__(self, client: JudgeClient, calls: JudgeCalls, settings: ScoringSettings, durably: Durably) -> None:
        self._client = client
        self._calls = calls
        self._settings = settings
        self._durably = durably
        self._slots = asyncio.Semaphore(settings.judge_concurrency)
        self._unanswered = 0
        self._end = time.monotonic() + settings.batch_timeout_s

    async def ask(self, question: Question) -> Reply:
        """Return the reply to the question. Raises JudgeFailed."""
        if (known := await self._durably(lambda: self._calls.recall(question))) is not None:
            metrics.JUDGE_CACHED.inc()
            return Reply(known[1], known[0], cached=True)
        async with self._slots:
            messages, ids = question.messages(), list(question.labels.values())
            for left in reversed(range(1 + self._settings.judge_corrections)):
                try:
                    call_id, answer, seconds, cost = await self._answer(question, messages, ids)
                except JudgeFailed as failed:
                    self._unanswered += failed.reason in (JudgeFailure.DOWN, JudgeFailure.REFUSED)
                    raise
                self._unanswered = 0
                try:
                    found = parse(answer.text, ids)
                except Unusable as problem:
                    await self._settle(call_id, "unusable", cost, seconds, detail=str(problem))
                    if not left:
                        raise JudgeFailed(JudgeFailure.UNUSABLE, str(problem)) from problem
                    metrics.JUDGE_RETRIES.labels("correction").inc()
                    messages = [*question.messages(), *correction(answer.text, problem, ids)]
                    continue
                opinions = {key: found[label] for key, label in question.labels.items()}
                await self._settle(call_id, "answered", cost, seconds, verdict=opinions)
                return Reply(opinions, call_id, cached=False)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _answer(
        self, question: Question, messages: Sequence[Mapping[str, str]], ids: Sequence[str]
    ) -> tuple[str, Answer, float, Cost]:
        """Return the first answer that comes, with its call, which is not settled yet. Raises JudgeFailed."""
        estimate = estimate_tokens(messages)
        most = self._calls.cost(estimate, self._settings.judge_answer_tokens)
        for attempt in range(1, 2 + self._settings.judge_retries):
            self._require_hope()
            call_id = await self._durably(lambda: self._calls.reserve(question, most))
            began = time.monotonic()
            try:
                with judge_span(self._settings, attempt):
                    answer = await self._client.ask(messages, ids)
                    judged(answer)
            except NoAnswer as failed:
                cost = None if failed.charged else self._calls.cost(0, 0)
                await self._settle(call_id, failed.outcome, cost, time.monotonic() - began, detail=str(failed))
                await self._pause(failed, attempt)
                continue
            words = -(-len(answer.text.encode(errors="replace")) // 3)
            spent = self._calls.cost(
                estimate if answer.prompt_tokens is None else answer.prompt_tokens,
                words if answer.completion_tokens is None else answer.completion_tokens,
            )
            return call_id, answer, time.monotonic() - began, spent
        raise AssertionError("unreachable: the last pause raises")

    def _require_hope(self) -> None:
        if time.monotonic() >= self._end:
            raise JudgeFailed(JudgeFailure.OUT_OF_TIME, "the time for judging this batch is over")
        if self._unanswered >= GIVE_UP_AFTER:
            raise JudgeFailed(JudgeFailure.DOWN, f"it gave no answer to {self._unanswered} questions in a row")

    async def _pause(self, failed: NoAnswer, attempt: int) -> None:
        """Wait before the next attempt. Raises JudgeFailed when there shall be none."""
        if not failed.again:
            raise JudgeFailed(JudgeFailure.REFUSED, f"{failed.outcome}: {failed}")
        wait = backoff(attempt) if failed.retry_after is None else failed.retry_after
        if attempt > self._settings.judge_retries or wait > LONGEST_PAUSE_S:
            raise JudgeFailed(JudgeFailure.DOWN, f"{failed.outcome}: {failed}")
        _log.warning("judge gave no answer", outcome=failed.outcome, attempt=attempt, wait_s=round(wait, 3))
        metrics.JUDGE_RETRIES.labels(failed.outcome).inc()
        await asyncio.sleep(max(0.0, min(wait, self._end - time.monotonic())))

    async def _settle(
        self, call_id: str, outcome: str, cost: Cost | None, seconds: float, *, detail: str | None = None,
        verdict: Mapping[str, Opinion] | None = None,
    ) -> None:  # fmt: skip
        metrics.JUDGE_CALLS.labels(outcome).inc()
        metrics.JUDGE_SECONDS.observe(seconds)
        if cost is not None:
            metrics.JUDGE_TOKENS.labels("prompt").inc(cost.prompt_tokens)
            metrics.JUDGE_TOKENS.labels("completion").inc(cost.completion_tokens)
            metrics.JUDGE_COST.inc(cost.usd)
        await self._durably(
            lambda: self._calls.settle(
                call_id, outcome, cost=cost, latency_s=seconds, detail=detail, verdict=verdict
            )
        )  # fmt: skip
