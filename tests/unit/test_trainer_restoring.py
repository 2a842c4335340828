"""Calls that lack ids or log-probabilities: restored and marked, or dropped with the reason."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from flywheel.events import Sampling
from services.trainer.calls import CallDropped, Restore, Rules, Tokens
from services.trainer.ledger import Ledger
from services.trainer.rows import build
from tests.support.calls import RULES, call, sampled, trajectory


def restoring(answer: Tokens | CallDropped = CallDropped.MERGED) -> Rules:
    restore: Restore = lambda _: answer  # noqa: E731 - one line says it
    return dataclasses.replace(RULES, restore=restore)


def test_ids_without_log_probabilities_wait_for_them_and_are_marked() -> None:
    ledger = Ledger()
    calls = call([1], [2, 3]), call([1, 2, 3], [4, 5], completion_logprobs=None)
    (row,) = build(trajectory(*calls), restoring(), ledger)
    assert row.unknown == [3, 4]
    assert not any(map(math.isnan, row.logprobs[:3]))
    assert (row.recomputed, row.retokenized) == (2, 0)
    assert ledger.calls == {"read": 2, "usable": 2, "recomputed": 1}
    assert (ledger.rows["recomputed"], ledger.tokens["recomputed"], ledger.tokens["trained"]) == (1, 2, 4)


def test_text_becomes_tokens_that_are_marked() -> None:
    ledger = Ledger()
    text = call([], [], prompt_token_ids=None, completion_token_ids=None, completion_logprobs=[-0.5, -0.5])
    (row,) = build(trajectory(text), restoring(Tokens([1], [2, 3])), ledger)
    assert (row.tokens, row.unknown, row.retokenized) == ([1, 2, 3], [1, 2], 2)
    assert (ledger.calls["retokenized"], ledger.rows["retokenized"], ledger.tokens["retokenized"]) == (1, 1, 2)


def test_recorded_log_probabilities_of_recorded_ids_are_kept_when_only_the_prompt_is_text() -> None:
    ledger = Ledger()
    half = call([], [2, 3], "1.3.0", prompt_token_ids=None)
    (row,) = build(trajectory(half), restoring(Tokens([1], [2, 3])), ledger)
    assert (row.logprobs[1:], row.unknown) == (half.completion_logprobs, [])
    assert (ledger.calls["retokenized"], ledger.calls["recomputed"]) == (1, 0)


NO_LOGPROBS: dict[str, Any] = {"completion_logprobs": None}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({**NO_LOGPROBS, "version": "1.3.0"}, CallDropped.NOT_LOADED),
        ({**NO_LOGPROBS, "version": "2.0.0"}, CallDropped.OTHER_BASE),
        ({**NO_LOGPROBS, "version": "9.9.9"}, CallDropped.UNKNOWN_VERSION),
        ({**NO_LOGPROBS, "sampling": Sampling(top_p=0.9)}, CallDropped.CUT_SAMPLING),
        ({**NO_LOGPROBS, "sampling": Sampling(top_k=20)}, CallDropped.CUT_SAMPLING),
        ({**NO_LOGPROBS, "sampling": Sampling(temperature=0.7)}, CallDropped.TEMPERATURE),
        ({**NO_LOGPROBS, "error": "timed out"}, CallDropped.FAILED),
        ({"completion_logprobs": [-0.1]}, CallDropped.MISALIGNED),
        ({"completion_token_ids": None}, CallDropped.MERGED),
        ({"prompt_token_ids": None}, CallDropped.MERGED),
        ({"completion_token_ids": [], "completion_logprobs": None}, CallDropped.NO_IDS),
    ],
)
def test_what_cannot_be_restored_is_dropped_and_never_taken_for_on_policy(
    values: dict[str, Any], reason: CallDropped
) -> None:
    ledger = Ledger()
    rows = build(trajectory(call([1, 2], [3, 4], **values), call([1, 2, 3, 4, 5], [6])), restoring(), ledger)
    assert [(row.tokens, sampled(row)) for row in rows] == [([1, 2, 3, 4, 5, 6], [6])]
    assert ledger.calls_dropped == {reason: 1}


def test_restored_ids_are_checked_like_recorded_ones() -> None:
    ledger = Ledger()
    text = call([], [], prompt_token_ids=None, completion_token_ids=None, completion_logprobs=None)
    assert build(trajectory(text), restoring(Tokens([1], [10_000])), ledger) == []
    assert ledger.calls_dropped == {CallDropped.BAD_TOKEN: 1}
