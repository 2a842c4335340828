"""From a record to an outcome, and which of several holds, purely."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flywheel.canonical import canonical_json
from flywheel.errors import PoisonError
from flywheel.outcomes import About, Outcome
from flywheel.stream.record import Record

#: What is stored of something: the revision, and the digest of what it says.
Known = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An outcome as it will be stored."""

    outcome: Outcome
    about: About
    digest: bytes
    body: str
    partition: int
    offset: int


@dataclass(slots=True)
class Choice:
    """Which outcomes of a batch replace what is stored, what became of the others, and which can never be stored."""

    newest: dict[About, Decoded] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[int, int], PoisonError] = field(default_factory=dict)


def decode(record: Record) -> Decoded:
    """Return the record's outcome. Raises PoisonError: what :meth:`Outcome.parse` says, or ``nul``."""
    outcome = Outcome.parse(record.value)
    says = outcome.model_dump(mode="json", include={"facts", "rules", "retracted"})
    canonical = canonical_json(says)
    if b"\\u0000" in canonical.replace(b"\\\\", b""):
        raise PoisonError("nul", "the outcome holds the character NUL, which the database cannot")
    return Decoded(
        outcome, outcome.about, hashlib.blake2b(canonical, digest_size=16).digest(),
        (record.value or b"").decode(), record.partition, record.offset,
    )  # fmt: skip


def choose(outcomes: Iterable[Decoded], stored: Mapping[About, Known]) -> Choice:
    """Judge outcomes, in order, by what is stored: a higher revision replaces, an older one is overtaken.

    The same revision that says the same is a duplicate, whatever its id; one that says something else is a conflict:
    what was first holds.
    """
    choice = Choice()
    holds = dict(stored)
    for one in outcomes:
        revision, digest = holds.get(one.about, (0, b""))
        if one.outcome.revision > revision:
            holds[one.about] = (one.outcome.revision, one.digest)
            choice.newest[one.about] = one
            choice.counts[_change(one.outcome, known=revision > 0)] += 1
        elif one.outcome.revision < revision:
            choice.counts["overtaken"] += 1
        elif one.digest == digest:
            choice.counts["duplicate"] += 1
        else:
            choice.reasons[one.partition, one.offset] = PoisonError(
                "conflict",
                f"revision {revision} of this outcome is recorded and says something else: send a higher one",
            )
    return choice


def _change(outcome: Outcome, *, known: bool) -> str:
    if outcome.retracted:
        return "retraction"
    return "correction" if known else "new"
