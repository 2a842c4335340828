"""What is wrong with settings, in words for whoever set them. Pure."""

from __future__ import annotations

from pydantic import ValidationError

_SECRET = ("secret", "token", "key", "password", "postgres")


def describe(error: ValidationError, prefix: str | None) -> str:
    """Return one line that names each setting that does not fit: its environment variable, which begins with
    ``prefix``, or its place where that is None. A secret's value is not shown.
    """
    found = []
    for detail in error.errors():
        if not detail["loc"]:  # about several settings: the words name them, and what was given may hold a secret
            found.append(detail["msg"].removeprefix("Value error, "))
            continue
        place = ".".join(str(part) for part in detail["loc"])
        name = place if prefix is None else f"{prefix}{place}".upper()
        given = "" if any(word in name.lower() for word in _SECRET) else f", not {detail['input']!r}"
        found.append(f"{name}: {detail['msg'][:1].lower()}{detail['msg'][1:]}{given}")
    return "; ".join(found)
