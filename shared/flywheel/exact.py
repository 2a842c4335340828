"""Exact sums of floats: the same whatever their order and grouping. Pure.

Every float is a whole number of 2^-1074, the smallest one above zero; so is every sum of floats. As integers they add
up without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

_SCALE = 1074


def units(value: float) -> int:
    """Return a finite float as a number of 2^-1074."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_SCALE + 1 - denominator.bit_length())


def decimal_text(total: int) -> str:
    """Return a number of 2^-1074 as an exact decimal, as Postgres and Decimal read it."""
    if not total:
        return "0"
    zeros = (total & -total).bit_length() - 1
    places = _SCALE - zeros
    return str(total >> _SCALE) if places <= 0 else f"{(total >> zeros) * 5**places}E-{places}"


def exact_sum(values: Iterable[float]) -> Decimal:
    """Return the exact sum of finite floats."""
    return Decimal(decimal_text(sum(map(units, values))))


def rounded_sum(values: Iterable[float]) -> float:
    """Return the float nearest to the exact sum of finite floats; infinite where that is beyond every float."""
    listed = list(values)
    try:
        return math.fsum(listed)
    except OverflowError:  # on the way, which says nothing about the sum
        return float(exact_sum(listed))
