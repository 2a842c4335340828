"""Long trajectories made to fit, by a stated rule, and the reader is told what was left out. Pure. Sizes are bytes of
UTF-8.

1. What fits is shown whole.
2. Else each step that takes more than a quarter of the room is cut in its middle.
3. Else steps are left out in the middle: the last ones and the first ones are kept, in turns, as long as they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

#: Less room than this holds no notice of what was left out beside anything worth reading.
LEAST = 600

_NOTICE = "[… {count} of {total} steps left out here: this attempt was too long to be shown whole …]"
_CUT = "[… {count} bytes left out here …]"
#: Room for either notice with numbers in it.
_NOTICE_ROOM = 120


def size(text: str) -> int:
    """Return the bytes of ``text`` in UTF-8."""
    return len(text.encode())


def blocks(items: Sequence[tuple[int, str]]) -> list[str]:
    """Return the items as one text a block."""
    return ["\n".join(text for _, text in group) for _, group in groupby(items, key=lambda item: item[0])]


def cut_middle(text: str, room: int) -> str:
    """Return ``text`` in at most ``room`` bytes (not below 150): two thirds of it from the start, the rest from the
    end.
    """
    data = text.encode()
    if len(data) <= room:
        return text
    kept = max(0, room - _NOTICE_ROOM)
    head, tail = data[: kept * 2 // 3], data[len(data) - (kept - kept * 2 // 3) :]
    notice = _CUT.format(count=len(data) - kept)
    return f"{head.decode(errors='ignore')}{notice}{tail.decode(errors='ignore')}"


def shorten(parts: Sequence[str], room: int) -> str:
    """Return the blocks of one trajectory in at most ``room`` bytes (at least ``LEAST``)."""
    room = max(room, LEAST)
    if _joined(parts) <= room:
        return "\n".join(parts)
    parts = [cut_middle(part, room // 4) for part in parts]
    if _joined(parts) <= room:
        return "\n".join(parts)
    left = room - _NOTICE_ROOM
    head, tail = 0, 0
    while head + tail < len(parts):
        from_tail = tail <= head
        part = parts[len(parts) - 1 - tail] if from_tail else parts[head]
        if (left := left - size(part) - 1) < 0:
            break
        head, tail = (head, tail + 1) if from_tail else (head + 1, tail)
    notice = _NOTICE.format(count=len(parts) - head - tail, total=len(parts))
    return "\n".join([*parts[:head], notice, *parts[len(parts) - tail :]])


def _joined(parts: Sequence[str]) -> int:
    return sum(size(part) + 1 for part in parts)
