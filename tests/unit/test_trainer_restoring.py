"""Calls that lack ids or log-probabilities: restored and marked, or dropped with the reason."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from flywheel.events import Sampling
from services.trainer.calls import CallDropped, Restore, Rules, Tokens
from services.trainer.ledger import Ledger
from services.trainer.rows import RowDropped, build, learnable
from tests.support.calls import RULES, call, sampled, trajectory


def restoring(answer: Tokens | CallDropped = CallDropped.MERGED) -> Rules:
    restore: Restore = lambda _: answer  # noqa: E731 - one line says it
    return dataclasses.replace(RULES, restore=restore)


def test_ids_without_log_probabilities_wait_for_them_and_are_marked() -> None:
    ledger = Ledger()
    calls = call([1], [2, 3]), call([1, 2, 3], [4, 5], completion_logprobs=None)
    (row,) = learnable(build(trajectory(*calls), restoring(), ledger), restoring(), ledger)
    assert row.unknown == [3, 4]
    assert not any(map(math.isnan, row.logprobs[:3]))
    assert (row.recomputed, row.retokenized) == (2, 0)
    assert ledger.calls == {"read": 2, "usable": 2, "recomputed": 1}
    assert (ledger.rows["recomputed"], ledger.tokens["recomputed"], ledger.tokens["trained"]) == (1, 2, 4)


def test_text_becomes_tokens_that_are_marked() -> None:
    ledger = Ledger()
    text = call([], [], prompt_token_ids=None, completion_token_ids=None, completion_logprobs=[-0.5, -0.5])
    rules = restoring(Tokens([1], [2, 3]))
    (row,) = learnable(build(trajectory(text), rules, ledger), rules, ledger)
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


def supervising(answer: Tokens | CallDropped = CallDropped.MERGED) -> Rules:
    return dataclasses.replace(restoring(answer), supervise=True)


LOST = [
    pytest.param({**NO_LOGPROBS, "version": "1.3.0"}, id="another-version-sampled-it"),
    pytest.param({**NO_LOGPROBS, "sampling": Sampling(top_p=0.9)}, id="top-p"),
    pytest.param({**NO_LOGPROBS, "sampling": Sampling(top_k=20)}, id="top-k"),
    pytest.param({"sampling": Sampling(temperature=0.7)}, id="other-temperature"),
]


@pytest.mark.parametrize("values", LOST)
def test_calls_whose_log_probabilities_cannot_be_had_are_supervised(values: dict[str, Any]) -> None:
    ledger = Ledger()
    (row,) = build(trajectory(call([1, 2], [3, 4], **values)), supervising(), ledger)
    assert (row.supervised, row.tokens, sampled(row)) == (True, [1, 2, 3, 4], [3, 4])
    assert row.logprobs == [0.0] * 4, "not even those at another temperature"
    assert (row.unknown, row.recomputed) == ([], 0)
    assert ledger.calls == {"read": 1, "usable": 1, "supervised": 1}


def test_those_that_can_be_computed_are_not() -> None:
    ledger = Ledger()
    (row,) = build(trajectory(call([1, 2], [3, 4], **NO_LOGPROBS)), supervising(), ledger)
    assert (row.supervised, row.unknown) == (False, [2, 3])
    assert ledger.calls == {"read": 1, "usable": 1, "recomputed": 1}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({**NO_LOGPROBS, "version": "2.0.0"}, CallDropped.OTHER_BASE),
        ({**NO_LOGPROBS, "version": "9.9.9"}, CallDropped.UNKNOWN_VERSION),
        ({"error": "timed out"}, CallDropped.FAILED),
        ({"completion_logprobs": [-0.1]}, CallDropped.MISALIGNED),
        ({"completion_logprobs": [-0.1, 0.5]}, CallDropped.BAD_LOGPROBS),
        ({"completion_token_ids": None, "version": "1.3.0"}, CallDropped.MERGED),
        ({"completion_token_ids": [3, 10_000], **NO_LOGPROBS, "version": "1.3.0"}, CallDropped.BAD_TOKEN),
    ],
)
def test_what_cannot_be_told_is_not_imitated_either(values: dict[str, Any], reason: CallDropped) -> None:
    ledger = Ledger()
    assert build(trajectory(call([1, 2], [3, 4], **values)), supervising(), ledger) == []
    assert ledger.calls_dropped == {reason: 1}


def test_supervised_rows_are_old_or_too_long_like_others() -> None:
    ledger = Ledger()
    old = call([1, 2], [3, 4], "1.0.0", **NO_LOGPROBS)
    assert build(trajectory(old), supervising(), ledger) == []
    assert ledger.rows_dropped == {RowDropped.STALE: 1}


def test_a_row_is_of_one_sort_and_the_other_sort_is_its_context() -> None:
    ledger = Ledger()
    conversation = (
        call([1], [2]),
        call([1, 2, 3], [4], "1.3.0", **NO_LOGPROBS),
        call([1, 2, 3, 4, 5], [6]),
        call([1, 2, 3, 4, 5, 6, 7], [8], "1.3.0", **NO_LOGPROBS),
    )
    rows = build(trajectory(*conversation), supervising(), ledger)
    assert [(row.supervised, row.tokens, sampled(row)) for row in rows] == [
        (False, [1, 2, 3, 4, 5, 6], [2, 6]),
        (True, [1, 2, 3, 4, 5, 6, 7, 8], [4, 8]),
    ]
    assert ledger.rows == {"built": 2}, "nothing was rewritten"


def test_only_what_was_rewarded_is_imitated_and_the_ledger_says_so() -> None:
    ledger, rules = Ledger(), supervising()
    rows = [
        row
        for _ in range(4)
        for row in build(trajectory(call([1], [2, 3], "1.3.0", **NO_LOGPROBS), call([9], [8])), rules, ledger)
    ]
    for row, advantage in zip(rows, [0.5, 0.5, 0.0, 0.0, -0.5, -0.5, math.nan, math.nan], strict=True):
        row.advantage = advantage
    used = learnable(rows, rules, ledger)
    assert [(row.supervised, row.advantage) for row in used[:2]] == [(True, 0.5), (False, 0.5)]
    assert all(not row.supervised for row in used[2:])
    counts = ledger.as_dict()
    assert counts["rows"] == {"built": 8, "supervised": 1, "used": 5}
    assert counts["rows_dropped"] == {"not_rewarded": 3}
    assert counts["tokens"] == {"context": 5, "supervised": 2, "trained": 6}
    assert counts["by_scenario"]["s"]["tokens.supervised"] == 2
    assert counts["tokens_by_version"] == {"1.3.0": 2, "1.4.0": 4}
