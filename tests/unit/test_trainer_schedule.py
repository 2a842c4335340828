"""Who computes which rows when: every row once a pass, no step biased by length, little padding, nothing too large."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.schedule import Limits, Step, padded, plan, steps_of_pass

LENGTHS = st.lists(st.integers(2, 400), min_size=1, max_size=70)
LIMITS = st.builds(
    lambda micro, accumulation, tokens, processes: Limits(micro * accumulation, micro, tokens, processes),
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 1500), st.integers(1, 4),
)  # fmt: skip


@given(LENGTHS, LIMITS, st.integers(0, 3), st.integers(0, 3))
def test_every_row_is_in_every_pass_exactly_once(lengths: list[int], limits: Limits, seed: int, number: int) -> None:
    steps = plan(lengths, limits, seed, number)
    assert len(steps) == steps_of_pass(len(lengths), limits)
    assert sorted(row for step in steps for row in step.rows) == list(range(len(lengths)))


@given(LENGTHS, LIMITS)
def test_steps_are_even_and_within_the_limits(lengths: list[int], limits: Limits) -> None:
    steps = plan(lengths, limits, 0, 0)
    sizes = [len(step.rows) for step in steps]
    assert max(sizes) <= limits.step_rows
    assert max(sizes) - min(sizes) <= 1
    for share in shares(steps):
        assert len(share) <= limits.micro_rows
        assert len(share) == 1 or len(share) * max(lengths[row] for row in share) <= limits.micro_tokens


@given(LENGTHS, LIMITS, st.integers(0, 3))
def test_what_a_step_holds_depends_on_neither_lengths_nor_processes(
    lengths: list[int], limits: Limits, number: int
) -> None:
    """So bucketing biases no step, and more processes learn the same."""
    alone = Limits(limits.step_rows, limits.micro_rows, limits.micro_tokens)
    reference = plan([2] * len(lengths), alone, 7, number)
    found = plan(lengths, limits, 7, number)
    assert [sorted(step.rows) for step in found] == [sorted(step.rows) for step in reference]


@given(LENGTHS, LIMITS)
def test_all_processes_go_through_the_same_rounds_and_none_is_idle_for_long(lengths: list[int], limits: Limits) -> None:
    for step in plan(lengths, limits, 0, 0):
        assert {len(round_) for round_ in step.rounds} == {limits.processes}
        idle = sum(not share for round_ in step.rounds for share in round_)
        assert idle < limits.processes
        assert all(round_[0] for round_ in step.rounds)


def test_passes_and_seeds_deal_the_rows_out_anew_and_the_same_arguments_do_not() -> None:
    lengths, limits = list(range(2, 42)), Limits(8, 8, 10_000)
    first = plan(lengths, limits, 0, 0)
    assert first == plan(lengths, limits, 0, 0)
    for other in (plan(lengths, limits, 0, 1), plan(lengths, limits, 1, 0)):
        assert [set(step.rows) for step in other] != [set(step.rows) for step in first]


def test_every_row_comes_to_every_step_equally_often() -> None:
    lengths, limits = [10, 2000, *[10] * 10], Limits(4, 4, 10_000)
    where = Counter(
        at for number in range(300) for at, step in enumerate(plan(lengths, limits, 0, number)) if 1 in step.rows
    )
    assert all(70 < count < 130 for count in where.values())


def test_long_rows_do_not_make_short_ones_long() -> None:
    lengths = [4000, 3900, *[50] * 14]
    limits = Limits(16, 8, 16_384)
    (step,) = plan(lengths, limits, 0, 0)
    assert padded(step, lengths) < 1.05 * sum(lengths)
    assert {share for share in shares([step]) if 0 in share or 1 in share} == {(0, 1)}


@pytest.mark.parametrize(("tokens", "wanted"), [(10_000, {5}), (60, {5}), (59, {4, 1}), (20, {1})])
def test_alike_rows_share_as_much_as_fits(tokens: int, wanted: set[int]) -> None:
    (step,) = plan([12] * 5, Limits(5, 5, tokens), 0, 0)
    assert {len(share) for share in shares([step])} <= wanted


def test_a_few_tokens_of_padding_are_cheaper_than_another_pass() -> None:
    (step,) = plan([20, 18, 15, 12], Limits(4, 4, 10_000), 0, 0)
    assert len(step.rounds) == 1


def shares(steps: list[Step]) -> list[tuple[int, ...]]:
    return [share for step in steps for round_ in step.rounds for share in round_ if share]
