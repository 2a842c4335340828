"""Which rows are computed together, when, and by which process. Pure.

A pass deals all rows out to optimizer steps at random, evenly; nothing of a row decides its step, so that no step is
biased by length. Within a step, where order does not matter, rows of similar length share a micro-batch: as many as
fit, cut where the padding costs least. The gradient of a step is the same however it is cut, and whoever computes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: What a forward and backward pass costs beside its tokens, in tokens: below it, padding is cheaper than another pass.
#: Only speed depends on it. Models of 5 to 60 million weights, on two cores, were somewhat above 100.
_PASS_TOKENS = 128

#: The rows of one micro-batch, by index; empty for a process that has nothing to do.
Share = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is computed at once. ``step_rows``: rows of an optimizer step, of all processes together."""

    step_rows: int
    micro_rows: int
    micro_tokens: int
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: rounds, in each of which every process computes its share."""

    rounds: tuple[tuple[Share, ...], ...]

    @property
    def rows(self) -> list[int]:
        """Every row of the step, once."""
        return [row for shares in self.rounds for share in shares for row in share]


def steps_of_pass(rows: int, limits: Limits) -> int:
    """Return how many optimizer steps a pass over so many rows takes."""
    return -(-rows // limits.step_rows)


def plan(lengths: Sequence[int], limits: Limits, seed: int, number: int) -> list[Step]:
    """Return the steps of pass ``number`` over rows of these lengths (in tokens). Every row is in exactly one; steps
    differ by one row at most. The same arguments give the same steps.
    """
    order = list(range(len(lengths)))
    random.Random(f"{seed}:{number}").shuffle(order)
    steps = steps_of_pass(len(order), limits)
    edges = [len(order) * step // steps for step in range(steps + 1)]
    return [_step(order[start:end], lengths, limits) for start, end in pairwise(edges)]


def padded(step: Step, lengths: Sequence[int]) -> int:
    """Return the tokens that a step computes, padding included."""
    shares = [share for shares in step.rounds for share in shares if share]
    return sum(len(share) * max(lengths[row] for row in share) for share in shares)


def _step(rows: Sequence[int], lengths: Sequence[int], limits: Limits) -> Step:
    longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
    # Where there are processes enough for fewer rows each, nobody waits for a full micro-batch of another.
    most = min(limits.micro_rows, -(-len(rows) // limits.processes))
    shares = _cut(longest_first, lengths, most, limits.micro_tokens)
    # Neighbours in size make a round: processes that go through it together end together.
    shares += [()] * (-len(shares) % limits.processes)
    starts = range(0, len(shares), limits.processes)
    return Step(tuple(tuple(shares[start : start + limits.processes]) for start in starts))


def _cut(rows: Sequence[int], lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[Share]:
    """Cut ``rows``, longest first, into micro-batches at the least cost: padded tokens, and each pass's own. By dynamic
    programming: what is best up to a row does not depend on what comes after.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(rows) + 1):
        found = (float("inf"), end - 1)
        for start in range(end - 1, max(0, end - most_rows) - 1, -1):
            tokens = (end - start) * lengths[rows[start]]
            if tokens > most_tokens and end - start > 1:
                break
            found = min(found, (best[start][0] + tokens + _PASS_TOKENS, start))
        best.append(found)
    cuts = [len(rows)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [tuple(rows[start:end]) for start, end in pairwise(reversed(cuts))]
