"""The contract of ``flywheel.outcomes``: what the world turned out to be, and what it says about recorded actions.

An outcome names a scenario or a window, and rules that turn the steps of its trajectories into reward entries, whenever
it arrives. ``docs/outcomes.schema.json`` is generated from it. Pure.

* What an outcome is about is its scope (scenario or window), ``subject``, ``name`` and ``source``. Of one such thing,
  the highest ``revision`` holds: its entries replace those of the revision before, and never add to them.
* ``retracted`` leaves no entries.
* Unknown fields are refused: a misspelt condition would judge steps that nobody meant.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from flywheel.errors import PoisonError
from flywheel.events import RewardKind
from flywheel.ids import Identifier, uuid7
from flywheel.messages import MessageBase
from flywheel.topics import MAX_OUTCOME_BYTES
from flywheel.windows import EARLIEST, LATEST

SCHEMA_VERSION = 1

#: Each step of every trajectory that an outcome concerns may be held against all of its rules.
_MAX_RULES = 1_000

Scope = Literal["scenario", "window"]

_MINTED_AT_SOURCE = frozenset({"outcome_id", "time"})


class About(NamedTuple):
    """What an outcome is about: of several with the same, the highest revision holds."""

    scope: Scope
    key: str
    subject: str
    name: str
    source: str


_WINDOW = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3])$"


class Rule(BaseModel):
    """Which steps get which reward. A condition that is left out always holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str | None = Field(default=None, description="the action's name")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="parameters that the action must have, with these values; it may have others"
    )
    success: bool | None = Field(
        default=None, description="whether the environment accepted and executed the action, as it said itself"
    )
    value: FiniteFloat = Field(description="the reward; 0 is a reward, too")
    scope: Literal["step", "trajectory"] = Field(
        default="step",
        description="`step`: each step that fits gets the reward; `trajectory`: the trajectory as a whole gets it,"
        " once, if any step fits (without conditions: always)",
    )


class Outcome(MessageBase):
    """What the world turned out to be. Key: the scenario or window. Its rules are tried in order, and the first that
    fits judges: each step by the first rule of scope `step`, the trajectory by the first of scope `trajectory`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome_id: UUID = Field(default_factory=uuid7, description="UUIDv7, minted once at the source")
    scenario_id: Identifier | None = Field(default=None, description="the scenario it judges; this or `window_id`")
    window_id: Annotated[str, Field(pattern=_WINDOW)] | None = Field(
        default=None, description="the window it judges (`2026-11-23T04`: the UTC hour of the trajectories' start)"
    )
    subject: Identifier = Field(description="what it is about, for example the market")
    name: Identifier = Field(default="outcome", description="name of its reward entries")
    source: Identifier = Field(description="who says so")
    revision: Annotated[int, Field(ge=1, lt=2**31)] = Field(
        default=1, description="1, 2, 3 … of the same scenario or window, subject, name and source; the highest holds"
    )
    time: AwareDatetime = Field(
        default_factory=lambda: datetime.now(UTC), ge=EARLIEST, lt=LATEST, description="when it became known"
    )
    facts: dict[str, Any] = Field(default_factory=dict, description="what the world turned out to be")
    rules: Annotated[list[Rule], Field(max_length=_MAX_RULES)] = Field(
        default_factory=list, description="in order, the first that fits judges"
    )
    retracted: bool = Field(default=False, description="it never was: its reward entries are removed")
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=32767)

    @model_validator(mode="after")
    def _one_scope(self) -> Self:
        if (self.scenario_id is None) == (self.window_id is None):
            raise ValueError("exactly one of scenario_id and window_id")
        return self

    @property
    def key(self) -> str:
        """The scenario or window: the message's key."""
        return self.scenario_id or self.window_id or ""

    @property
    def about(self) -> About:
        """What it is about."""
        scope: Scope = "window" if self.scenario_id is None else "scenario"
        return About(scope, self.key, self.subject, self.name, self.source)

    @classmethod
    def parse(cls, raw: bytes | str | None) -> Self:
        """Decode, strictly.

        Raises PoisonError ``no_value``, ``too_large``, ``not_json``, ``newer_schema`` or ``schema``; its message names
        the offending fields, never their contents.
        """
        if raw is None:
            raise PoisonError("no_value", "a record without a value is no outcome")
        if len(raw) > MAX_OUTCOME_BYTES:
            raise PoisonError("too_large", f"outcome of {len(raw)} bytes; the limit is {MAX_OUTCOME_BYTES}")
        try:
            outcome = cls.model_validate_json(raw, strict=True)
        except ValidationError as error:
            raise _poison(raw, error) from None
        json.loads(raw, parse_constant=_refuse)
        if absent := _MINTED_AT_SOURCE - outcome.model_fields_set:
            raise PoisonError("schema", f"{', '.join(sorted(absent))}: must be set by the producer")
        return outcome


class RewardEntry(BaseModel):
    """A reward that an outcome gave a step or a whole trajectory, beside those that events brought."""

    model_config = ConfigDict(frozen=True)

    step: int | None = Field(default=None, description="the step it judges; none: the whole trajectory")
    reward_kind: RewardKind = RewardKind.OUTCOME
    name: str
    value: FiniteFloat
    source: str
    subject: str
    scope: Scope
    key: str = Field(description="the scenario or window that the outcome names")

    @property
    def order(self) -> tuple[Any, ...]:
        """What entries of one trajectory are ordered by, wherever they are listed."""
        step = -1 if self.step is None else self.step
        return step, self.scope, self.key, self.subject, self.name, self.source, self.reward_kind


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of everything that :meth:`Outcome.parse` accepts."""
    schema = Outcome.model_json_schema()
    schema["required"] = sorted({*_MINTED_AT_SOURCE, *schema["required"]})
    schema["oneOf"] = [
        {"required": [given], "properties": {given: {"type": "string"}, other: {"type": "null"}}}
        for given, other in (("scenario_id", "window_id"), ("window_id", "scenario_id"))
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Flywheel outcome"}


def _poison(raw: bytes | str, error: ValidationError) -> PoisonError:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        return PoisonError("not_json", details[0]["msg"])
    where = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}".removeprefix(": ") for d in details[:5])
    version = _version(raw)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return PoisonError("newer_schema", f"schema_version {version}, this reader knows {SCHEMA_VERSION}: {where}")
    return PoisonError("schema", where)


def _version(raw: bytes | str) -> object:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found.get("schema_version") if isinstance(found, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise PoisonError("not_json", f"{constant} is not JSON; leave the field out")
