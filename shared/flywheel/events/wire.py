"""Events on the wire: JSON in and out, and why something is no event. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError

from flywheel.errors import PoisonError
from flywheel.events.kinds import KINDS, SCHEMA_VERSION, Event
from flywheel.topics import MAX_EVENT_BYTES

#: Errors of one event that are looked at.
_MOST_DETAILS = 100
_MINTED_AT_SOURCE = frozenset({"event_id", "time"})

_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def parse(raw: bytes | str) -> Event:
    """Decode one event.

    Raises PoisonError with reason ``too_large``, ``not_json``, ``unknown_kind``, ``newer_schema`` or ``schema``; its
    message names the offending fields, never their contents.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise PoisonError("too_large", f"event of {len(raw)} bytes; the limit is {MAX_EVENT_BYTES}")
    try:
        # Strict, because others read the stored bytes: a number written as a text, or true for 1.0, would pass here and
        # break them.
        event = _adapter.validate_json(raw, strict=True)
    except ValidationError as error:
        raise _poison(raw, error) from None
    _refuse_constants(raw)
    absent = _MINTED_AT_SOURCE - event.model_fields_set
    if absent:
        # The defaults are for building events. Minting an id here would make every replay a new event.
        raise PoisonError("schema", f"{', '.join(sorted(absent))}: must be set by the producer")
    return event


def dump(event: Event, fallback: Callable[[Any], Any] | None = None) -> bytes:
    """Encode one event for the wire: UTF-8 JSON, absent optional fields left out.

    ``fallback`` turns values that JSON does not know into some that it does; without it they raise ValueError.
    """
    return event.model_dump_json(exclude_none=True, fallback=fallback).encode()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of everything that :func:`parse` accepts."""
    schema = _adapter.json_schema()
    for definition in schema["$defs"].values():
        if "kind" in definition.get("properties", {}):
            definition["required"] = sorted({"kind", *_MINTED_AT_SOURCE, *definition["required"]})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Flywheel event", **schema}


def _poison(raw: bytes | str, error: ValidationError) -> PoisonError:
    if error.error_count() > _MOST_DETAILS:  # hundreds of thousands, perhaps: each would be a dict
        return _misfit(raw, f"{error.error_count():,} fields do not fit")
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]["type"]
    if first == "json_invalid":
        return PoisonError("not_json", details[0]["msg"])
    if first in ("union_tag_invalid", "union_tag_not_found"):
        return PoisonError("unknown_kind", f"kind must be one of {', '.join(KINDS)}")
    if first in ("model_attributes_type", "dict_type", "model_type"):
        return PoisonError("schema", "an event is a JSON object")
    where = "; ".join(f"{'.'.join(map(str, d['loc'][1:]))}: {d['msg']}" for d in details[:5])
    if len(details) > 5:
        where += f"; and {len(details) - 5} more"
    return _misfit(raw, where)


def _misfit(raw: bytes | str, where: str) -> PoisonError:
    version = _version_of(raw)
    if version is not None and version > SCHEMA_VERSION:
        return PoisonError("newer_schema", f"schema_version {version}, this reader knows {SCHEMA_VERSION}: {where}")
    return PoisonError("schema", where)


def _refuse_constants(raw: bytes | str) -> None:
    """Raise PoisonError for NaN and Infinity, which pydantic reads, JSON does not know, and databases refuse."""
    data = raw if isinstance(raw, bytes) else raw.encode()
    if b"NaN" in data or b"Infinity" in data:
        json.loads(data, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise PoisonError("not_json", f"{constant} is not JSON; send null, or leave the field out")


class _Versioned(BaseModel):
    schema_version: int


def _version_of(raw: bytes | str) -> int | None:
    try:
        return _Versioned.model_validate_json(raw).schema_version
    except ValidationError:
        return None
