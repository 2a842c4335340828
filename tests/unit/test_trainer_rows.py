"""Calls to rows: every usable sampled token once, after exactly the prompt that it was sampled from."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel.events import Failure, Sampling
from flywheel.trajectory import assemble
from services.trainer.calls import CallDropped, Sampled
from services.trainer.ledger import Ledger
from services.trainer.rows import NotTrained, RowDropped, build, chain, learnable
from tests.support.calls import NOW, RULES, call, drawn, sampled, trajectory


def test_a_conversation_becomes_one_row() -> None:
    rows = chain("t", [drawn([1, 2], [3, 4], 4), drawn([1, 2, 3, 4, 5], [6], 5)])
    (row,) = rows
    assert row.tokens == [1, 2, 3, 4, 5, 6]
    assert row.sampled == [0, 0, 1, 1, 0, 1]
    assert row.logprobs == [0, 0, -0.03, -0.04, 0, -0.06]
    assert row.versions == [0, 0, 4, 4, 0, 5]
    assert (row.prompt_length, row.sampled_count, row.oldest) == (2, 3, 4)


def test_rewritten_history_forks_a_row_and_trains_nothing_twice() -> None:
    first, second = chain("t", [drawn([1, 2], [3, 9, 4]), drawn([1, 2, 3, 4, 5], [6])])
    assert (first.tokens, sampled(first)) == ([1, 2, 3, 9, 4], [3, 9, 4])
    assert (second.tokens, sampled(second)) == ([1, 2, 3, 4, 5, 6], [6])


def test_two_conversations_side_by_side_become_two_rows() -> None:
    rows = chain("t", [drawn([1], [2]), drawn([7], [8]), drawn([1, 2, 3], [4]), drawn([7, 8, 9], [5])])
    assert [row.tokens for row in rows] == [[1, 2, 3, 4], [7, 8, 9, 5]]


def test_a_repeated_prompt_is_another_sample_and_another_row() -> None:
    rows = chain("t", [drawn([1], [2]), drawn([1], [3])])
    assert [sampled(row) for row in rows] == [[2], [3]]


@st.composite
def conversations(draw: st.DrawFn) -> list[Sampled]:
    """Calls whose prompts continue, cut, or change what was said before, some of them without log-probabilities that
    could be had. Every sampled token is unique.
    """
    said: list[list[int]] = [[]]
    calls: list[Sampled] = []
    fresh = iter(range(1000, 10_000))
    for _ in range(draw(st.integers(1, 8))):
        history = list(draw(st.sampled_from(said)))
        if history and draw(st.booleans()):
            at = draw(st.integers(0, len(history) - 1))
            history = draw(st.sampled_from([history[:at], [*history[:at], *history[at + 1 :]]]))
        prompt = [*history, *draw(st.lists(st.integers(0, 3), min_size=0 if history else 1, max_size=3))]
        completion = [next(fresh) for _ in range(draw(st.integers(1, 4)))]
        lost = draw(st.booleans())
        logprobs = None if lost else [-0.5] * len(completion)
        calls.append(drawn(prompt, completion, draw(st.integers(1, 5)), logprobs=logprobs, supervised=lost))
        said.append(prompt + completion)
    return calls


@given(conversations())
def test_every_sampled_token_is_trained_once_after_its_own_prompt(calls: list[Sampled]) -> None:
    rows = chain("t", calls)
    assert sorted(token for row in rows for token in sampled(row)) == sorted(
        token for each in calls for token in each.completion
    )
    for row in rows:
        assert len(row.tokens) == len(row.sampled) == len(row.logprobs) == len(row.versions)
    for each in calls:
        prompt, completion = each.prompt, each.completion
        end = len(prompt) + len(completion)
        (home,) = [row for row in rows if completion[0] in sampled(row)]
        assert home.tokens[:end] == prompt + completion
        assert home.sampled[len(prompt) : end] == [1] * len(completion)
        assert home.logprobs[len(prompt) : end] == (each.logprobs or [0.0] * len(completion))
        assert home.supervised == each.supervised
        assert home.versions[len(prompt) : end] == [each.version] * len(completion)


@given(conversations())
def test_rows_are_as_few_as_their_forks(calls: list[Sampled]) -> None:
    """A row begins only with a call that no row so far can take."""
    for upto in range(1, len(calls) + 1):
        before, after = chain("t", calls[: upto - 1]), chain("t", calls[:upto])
        call = calls[upto - 1]
        fits = any(row.continues_in(call.prompt) and row.supervised == call.supervised for row in before)
        assert len(after) == len(before) + (not fits)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt_token_ids": None}, CallDropped.NO_IDS),
        ({"completion_token_ids": None}, CallDropped.NO_IDS),
        ({"completion_token_ids": []}, CallDropped.NO_IDS),
        ({"completion_logprobs": None}, CallDropped.NO_LOGPROBS),
        ({"completion_logprobs": [-0.1]}, CallDropped.MISALIGNED),
        ({"completion_logprobs": [-0.1, 0.5]}, CallDropped.BAD_LOGPROBS),
        ({"sampling": Sampling(temperature=0.7)}, CallDropped.TEMPERATURE),
        ({"version": "9.9.9"}, CallDropped.UNKNOWN_VERSION),
        ({"version": "2.0.0"}, CallDropped.OTHER_BASE),
        ({"completion_token_ids": [3, 10_000]}, CallDropped.BAD_TOKEN),
        ({"error": "timed out"}, CallDropped.FAILED),
        ({"failure": Failure.INFRASTRUCTURE}, CallDropped.FAILED),
    ],
)
def test_an_unusable_call_is_counted_and_only_ever_context(values: dict[str, Any], reason: CallDropped) -> None:
    ledger = Ledger()
    unusable = call([1, 2], [3, 4], **values)
    rows = build(trajectory(unusable, call([1, 2, 3, 4, 5], [6])), RULES, ledger)
    assert [(row.tokens, sampled(row)) for row in rows] == [([1, 2, 3, 4, 5, 6], [6])]
    assert ledger.calls_dropped == {reason: 1}
    assert (ledger.calls["read"], ledger.calls["usable"]) == (2, 1)


def test_a_call_without_a_version_has_its_trajectorys() -> None:
    ledger = Ledger()
    (row,) = build(trajectory(call([1], [2]), model_version="1.3.0"), RULES, ledger)
    assert row.oldest == 4
    assert build(trajectory(call([1], [2]), model_version=None), RULES, ledger) == []
    assert ledger.calls_dropped == {CallDropped.NO_VERSION: 1}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"split": "held_out"}, NotTrained.HELD_OUT),
        ({"status": "error", "failure": Failure.INFRASTRUCTURE}, NotTrained.INFRASTRUCTURE),
        ({"reward": None}, NotTrained.NO_REWARD),
        ({"gap": 1}, NotTrained.GAPS),
    ],
)
def test_a_trajectory_that_says_nothing_of_the_policy_is_excluded_and_counted(
    values: dict[str, Any], reason: NotTrained
) -> None:
    ledger = Ledger()
    assert build(trajectory(call([1], [2]), **values), RULES, ledger) == []
    assert ledger.trajectories_dropped == {reason: 1}


def test_a_trajectory_that_went_silent_is_excluded() -> None:
    whole = trajectory(call([1], [2]))
    silent, ledger = assemble(whole.events[:-1], revision=1), Ledger()
    assert build(silent, RULES, ledger) == []
    assert ledger.trajectories_dropped == {NotTrained.INCOMPLETE: 1}


def test_failed_play_of_the_agent_is_trained_on() -> None:
    lost = trajectory(call([1], [2]), reward=0.0, status="error", failure=Failure.AGENT)
    assert len(build(lost, RULES, Ledger())) == 1


def test_a_row_with_one_token_too_old_is_dropped_whole() -> None:
    ledger = Ledger()
    mixed = trajectory(call([1], [2], "1.0.0"), call([1, 2, 3], [4], "1.4.0"))
    assert build(mixed, RULES, ledger) == []
    assert ledger.rows_dropped == {RowDropped.STALE: 1}
    assert ledger.trajectories_dropped == {NotTrained.NO_ROWS: 1}
    assert ledger.staleness == {"4": 1}


def test_staleness_counts_versions_not_names() -> None:
    ledger = Ledger()
    assert len(build(trajectory(call([1], [2], "1.2.0")), RULES, ledger)) == 1
    assert ledger.staleness == {"2": 1}


def test_a_row_longer_than_the_model_reads_is_dropped() -> None:
    ledger = Ledger()
    assert build(trajectory(call(range(1, 41), [2])), RULES, ledger) == []
    assert ledger.rows_dropped == {RowDropped.TOO_LONG: 1}


def test_the_ledger_adds_up() -> None:
    ledger = Ledger()
    rows = build(trajectory(call([1], [2]), call([8], [9, 9], completion_logprobs=None)), RULES, ledger)
    rows += build(trajectory(call([1], [2]), reward=None), RULES, ledger)
    rows += build(trajectory(call([1, 2], [3, 4]), call([1, 9], [5])), RULES, ledger)
    assert learnable(rows, RULES, ledger) == rows
    counts = ledger.as_dict()
    assert counts["trajectories"] == {"read": 3, "used": 2}
    assert counts["trajectories_dropped"] == {"no_reward": 1}
    assert counts["calls"] == {"read": 4, "usable": 3}
    assert counts["calls_dropped"] == {"no_logprobs": 1}
    assert counts["rows"] == {"built": 3, "forked": 1, "used": 3}
    assert counts["tokens"] == {"context": 5, "trained": 4}
    assert counts["tokens_by_version"] == {"1.4.0": 4}


def test_a_token_keeps_its_own_policy_where_a_row_has_several() -> None:
    ledger = Ledger()
    rows = build(trajectory(call([1], [2, 3], "1.3.0"), call([1, 2, 3, 4], [5], "1.4.0")), RULES, ledger)
    (row,) = learnable(rows, RULES, ledger)
    assert [v for v, mine in zip(row.versions, row.sampled, strict=True) if mine] == [4, 4, 5]
    assert ledger.tokens_by_version == {"1.3.0": 2, "1.4.0": 1}


@pytest.mark.parametrize(("age_s", "kept"), [(59, True), (60, True), (61, False), (-10, True)])
def test_a_row_with_a_token_sampled_too_long_ago_is_dropped_whole(age_s: int, kept: bool) -> None:
    rules, ledger = dataclasses.replace(RULES, max_age_s=60.0), Ledger()
    old = call([1], [2], time=NOW - timedelta(seconds=age_s))
    rows = build(trajectory(old, call([1, 2, 3], [4], time=NOW)), rules, ledger)
    assert bool(rows) == kept
    assert ledger.rows_dropped == ({} if kept else {RowDropped.TOO_OLD: 1})


def test_age_is_no_reason_without_a_bound() -> None:
    assert build(trajectory(call([1], [2], time=NOW - timedelta(days=3000))), RULES, Ledger())
