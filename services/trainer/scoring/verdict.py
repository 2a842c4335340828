"""A judge's answer, read strictly: every attempt once, by its id, each score a number from 0 to 1. Pure.

The layout around the JSON is forgiven (a code fence, prose before it); its content is not. What is wrong is said in
words that the judge can act on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_LONGEST_EXPLANATION = 2000
_MOST_PROBLEMS = 8
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_OBJECT = re.compile(r'\{\s*"scores"')


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge said of one attempt in one pass."""

    score: float
    explanation: str


class Unusable(ValueError):  # noqa: N818 - what the answer is, in the words of this package
    """The answer cannot be used; the message says why, for the judge to read."""


def parse(text: str, ids: Collection[str]) -> dict[str, Opinion]:
    """Return the opinion on each of ``ids``. Raises Unusable."""
    entries = _object(text).get("scores")
    if not isinstance(entries, list):
        raise Unusable('"scores" must be a list')
    problems: list[str] = []
    found: dict[str, Opinion] = {}
    seen: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            problems.append('each entry of "scores" must be an object with a text "id"')
            continue
        name = entry["id"]
        seen[name] += 1
        if name not in ids:
            problems.append(f"there is no attempt {name[:40]!r}")
        elif (problem := _problem(entry.get("score"))) is not None:
            problems.append(f"the score of {name} {problem}")
        else:
            found[name] = Opinion(float(entry["score"]), _words(entry.get("explanation")))
    problems += [f"{name} was scored {count} times" for name, count in seen.items() if count > 1 and name in ids]
    problems += [f"{name} was not scored" for name in ids if not seen[name]]
    if problems:
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise Unusable("; ".join(problems[:_MOST_PROBLEMS]) + more)
    return found


def correction(answer: str, problem: Unusable, ids: Sequence[str]) -> list[dict[str, str]]:
    """Return the messages that ask again after an unusable answer."""
    again = (
        f"That answer cannot be used: {problem}. Answer again with the JSON object alone, scoring each of these "
        f"{len(ids)} attempts exactly once with a number from 0 to 1: {', '.join(ids)}"
    )
    return [{"role": "assistant", "content": answer[:4000] or "(nothing)"}, {"role": "user", "content": again}]


def average(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean score of each attempt over the passes that have one, rounded so that equal means are equal."""
    keys = dict.fromkeys(key for scores in passes for key in scores)
    return {key: round(fmean(scores[key] for scores in passes if key in scores), 9) for key in keys}


def ranks(scores: Mapping[str, float]) -> dict[str, int]:
    """Return the rank of each attempt: 1 is best, equals share the better rank."""
    return {key: 1 + sum(other > score for other in scores.values()) for key, score in scores.items()}


def normalised(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores stretched to 0 (the group's worst) to 1 (its best); 0.5 for all where none is better."""
    low, high = min(scores.values()), max(scores.values())
    if low == high:
        return dict.fromkeys(scores, 0.5)
    return {key: (score - low) / (high - low) for key, score in scores.items()}


def _object(text: str) -> dict[str, Any]:
    candidates = [text, *reversed(_FENCED.findall(text))]
    candidates += [text[match.start() :] for match in list(_OBJECT.finditer(text))[-3:][::-1]]
    for candidate in candidates:
        try:
            value, _ = json.JSONDecoder(parse_constant=_refuse).raw_decode(candidate.strip())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and "scores" in value:
            return value
    raise Unusable('it is not one JSON object with "scores" (NaN and Infinity are not JSON; was it cut short?)')


def _problem(score: object) -> str | None:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return "must be a number, not text or anything else"
    if not 0 <= score <= 1:
        return "must be from 0 to 1"
    return None


def _words(explanation: object) -> str:
    """Return the explanation as text that a database takes."""
    text = explanation if isinstance(explanation, str) else ""
    return text[:_LONGEST_EXPLANATION].replace("\x00", "\ufffd").encode(errors="replace").decode()


def _refuse(constant: str) -> float:
    raise ValueError(constant)
