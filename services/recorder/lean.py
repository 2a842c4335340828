"""A second, faster reader of events, for the hot path: the models of :mod:`flywheel.events` as msgspec structs.

It validates all that the models do and builds less: objects that nobody here looks into are only checked. It may say
"I cannot tell" (None) about anything, and then :func:`flywheel.events.parse` decides; it never accepts what ``parse``
refuses. The structs are made from the models, so that there is one contract, not two.
"""

from __future__ import annotations

import re
import types
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import annotated_types
import msgspec
from pydantic import AwareDatetime, BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from flywheel.events import Event
from flywheel.topics import MAX_EVENT_BYTES

#: Below pydantic's limits, which msgspec does not share: the depth of JSON, and the digits of a number.
_DEPTH = 190
_DIGITS = 4_000

#: Nothing is tried twice, and a text without an end reaches to the end: linear whatever comes.
_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_MOST_BRACKETS = 20_000
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_OPENING = bytes(set(range(256)) - set(b"[{"))


class _Object(msgspec.Struct, frozen=True, gc=False):
    """Any JSON object: checked, not built."""


def read(raw: bytes) -> Event | None:
    """Return an event with the attributes, defaults and properties of its model; None where ``parse`` must decide.

    Its time may differ from the model's by a microsecond: what is beyond microseconds is rounded here, cut off there.
    """
    if len(raw) > MAX_EVENT_BYTES or (len(raw) > _DIGITS and _long_number(raw)) or _deep(raw):
        return None
    try:
        if not raw.isascii():
            raw.decode()  # in what msgspec only checks, it does not look for it
        event = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    ids = "".join([getattr(event, name) or "" for name in _identifiers[type(event)]])
    if not (ids.isascii() and ids.isprintable()) or " " in ids:
        return None
    if not (event.time.microsecond or event.time.second):
        return None  # rounded up to the full hour, perhaps, in UTC if not here, and so into another window
    return cast(Event, event)


def _long_number(raw: bytes) -> bool:
    """Return whether so many digits may stand in a row: then they fill a block of half as many somewhere."""
    block = _DIGITS // 2
    return any(raw[at : at + block].isdigit() for at in range(0, len(raw) - block, block))


def _deep(raw: bytes) -> bool:
    if len(raw.translate(None, _NOT_OPENING)) <= _DEPTH:
        return False
    brackets = _TEXTS.sub(b"", raw).translate(None, _NO_BRACKETS)
    if len(brackets) > _MOST_BRACKETS:
        return True
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEPTH:
            return True
    return False


def _struct(model: type[BaseModel]) -> type[msgspec.Struct]:
    """Return the struct of a model: of an event's, tagged with its kind."""
    if model in _made:
        return _made[model]
    fields: list[Any] = []
    identifiers: list[str] = []
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        kind = _type(field.annotation, field.metadata)
        if _is_identifier(kind):
            identifiers.append(name)
        if field.is_required() or name in ("event_id", "time"):  # these have defaults for building events only
            fields.append((name, kind))
        elif field.default_factory is not None:
            fields.append((name, kind, msgspec.field(default_factory=_factory(kind))))
        else:
            fields.append((name, kind, field.default))
    namespace: dict[str, Any] = {n: member for n, member in vars(model).items() if isinstance(member, property)}
    options: dict[str, Any] = {}
    if "kind" in model.model_fields:
        (tag,) = get_args(model.model_fields["kind"].annotation)
        namespace["kind"], options = tag, {"tag_field": "kind", "tag": tag}
    elif identifiers:
        raise TypeError(f"{model.__name__}: identifiers are only looked at in the event itself")
    struct = msgspec.defstruct(
        model.__name__, fields, namespace=namespace, frozen=True, gc=False, kw_only=True, **options
    )
    _made[model], _identifiers[struct] = struct, identifiers
    return struct


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> Any:
    """Return the msgspec type that accepts no more than pydantic's strict mode accepts for an annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [item for one in arguments[1:] for item in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return _type(arguments[0], [*metadata, *more])
    if annotation is Any:
        return msgspec.Raw
    if annotation is AwareDatetime:
        return Annotated[datetime, msgspec.Meta(tz=True)]
    if origin in (Union, types.UnionType):
        return Union[tuple(_type(one) for one in arguments)]  # noqa: UP007 - made at run time
    if origin is list:
        return list[_type(arguments[0])]
    if origin is dict:
        return _Object if arguments[1] is Any else dict[str, _type(arguments[1])]
    if origin is Literal or annotation is type(None):
        return annotation
    if issubclass(annotation, BaseModel):
        return _struct(annotation)
    if issubclass(annotation, Enum):
        return annotation
    limits: dict[str, Any] = {}
    for limit in metadata:
        limits |= _limit(limit)
    return Annotated[annotation, msgspec.Meta(**limits)] if limits else annotation


def _limit(limit: Any) -> dict[str, Any]:
    match limit:
        case annotated_types.Ge():
            return {"ge": limit.ge}
        case annotated_types.Le():
            return {"le": limit.le}
        case annotated_types.Lt():
            return {"lt": limit.lt}
        case StringConstraints(pattern=r"^[!-~]+$"):
            return {"min_length": limit.min_length, "max_length": limit.max_length, "extra": {"identifier": True}}
        case _ if getattr(limit, "allow_inf_nan", None) is False:
            return {}  # JSON has neither, and msgspec refuses what overflows
        case _:
            raise TypeError(f"{limit!r} has no counterpart here")


def _is_identifier(kind: Any) -> bool:
    """Return whether a type is that of ids, optional ones too. msgspec's own patterns cost more than all else."""
    metas = [item for item in getattr(kind, "__metadata__", ()) if isinstance(item, msgspec.Meta)]
    return any(meta.extra for meta in metas) or any(map(_is_identifier, get_args(kind)))


def _factory(kind: Any) -> Any:
    return dict if get_origin(kind) is dict else kind


_made: dict[type[BaseModel], type[msgspec.Struct]] = {}
_identifiers: dict[type[msgspec.Struct], list[str]] = {}
_decoder = msgspec.json.Decoder(Union[tuple(_struct(model) for model in get_args(get_args(Event)[0]))])  # noqa: UP007
