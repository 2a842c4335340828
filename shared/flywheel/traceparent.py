"""W3C Trace Context as it travels in headers and lies in tables: the text of a ``traceparent``. Pure.

Needs no tracing library, so that those who do not trace can pass a context on. Only what is sampled is kept: nobody can
look at the rest.
"""

from __future__ import annotations

import re

#: Names of the headers: https://www.w3.org/TR/trace-context/.
HEADER = "traceparent"
STATE = "tracestate"

#: A later version may go on after the flags. Zeros name nothing, and the last bit of the flags says sampled.
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f][13579bdf])(-.*)?")
_LONGEST = 512
#: Sampled, and that the trace's id is random.
_KNOWN_FLAGS = 0x03


def sampled(value: bytes | str | None) -> str | None:
    """Return what a header says as a context of version 00; None when it is none, or not sampled.

    Anybody may write a header, and anything into it: never raises.
    """
    if value is None or len(value) > _LONGEST:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    found = _FORM.fullmatch(text.strip(" \t"))
    if found is None or (found[1] == "00" and found[4]):
        return None
    return f"00-{found[2]}-{int(found[3], 16) & _KNOWN_FLAGS:02x}"


def trace_id(context: str) -> str:
    """Return the trace of a context that :func:`sampled` returned."""
    return context[3:35]
