"""Columns of numbers, each column one large integer: one operation of Python works on all of a page's cells.

A loop of Python costs a tenth of a microsecond a number, an addition of large
integers a hundredth of that.  So a column of numbers is kept in *lanes* of 64
bits, and a rule that holds for all of them is one expression.

    column a    ... |   a2   |   a1   |   a0   |       lane i is bits 64 i to 64 i + 63
    column b    ... |   b2   |   b1   |   b0   |
    a + b       ... | a2+b2  | a1+b1  | a0+b0  |       no lane is ever full, so none touches the next

Numbers are compared by a *guard*, a bit above all that a number can have: of
``guard + limit - number`` it is left standing where the number is not above the
limit, and no lane borrows from the next.
"""

from __future__ import annotations

import functools
import struct
from array import array
from typing import Final

__all__ = [
    "LANE",
    "any_above",
    "any_below",
    "bytes_rise",
    "column",
    "first_lanes",
    "numbers",
    "ones",
    "rises",
    "swapped",
]

LANE: Final = 64
"""Bits of a lane."""

_BYTES: Final = LANE // 8

_GUARD: Final = 20
"""The guard where small numbers are compared; they are less than ``1 << _GUARD``."""

_HIGH_GUARD: Final = 40
"""The guard where numbers of 32 bits are."""


@functools.lru_cache(256)  # 8 MB at most, where every page has another number of cells and there are thousands
def ones(lanes: int) -> int:
    """The column that has 1 in every lane; its multiples have a constant."""
    return int.from_bytes((1).to_bytes(_BYTES, "little") * lanes, "little")


def column(raw: bytes) -> int:
    """The column of 64-bit numbers that lie one after the other in `raw`. O(length)."""
    return int.from_bytes(raw, "little")


def swapped(raw: bytes) -> int:
    """The column of the same numbers, with the bytes of each in reverse order. O(length)."""
    lanes = array("Q", raw)
    lanes.byteswap()
    return int.from_bytes(lanes, "little")


def first_lanes(raw: bytes, width: int) -> int:
    """The column of the first 64-bit number of each field of `width` bytes, a multiple of 8. O(length)."""
    return int.from_bytes(array("Q", raw)[:: width // _BYTES], "little")


def numbers(of: int, lanes: int) -> tuple[int, ...]:
    """The numbers of a column, one by one. O(lanes)."""
    return struct.unpack(f"<{lanes}Q", of.to_bytes(_BYTES * lanes, "little"))


def any_above(of: int, limit: int, one: int) -> bool:
    """Whether a number of a column is above `limit`; all are less than 1,000,000, `one` is `ones`. O(lanes)."""
    guard = one << _GUARD
    return (one * ((1 << _GUARD) + limit) - of) & guard != guard


def any_below(of: int, least: int, one: int) -> bool:
    """Whether a number of a column is below `least`; all are less than 1,000,000, `one` is `ones`. O(lanes)."""
    guard = one << _GUARD
    return (of + one * ((1 << _GUARD) - least)) & guard != guard


def rises(of: int, one: int) -> bool:
    """Whether each number of a column, of 32 bits, is above the one before it; `one` is `ones`. O(lanes)."""
    one >>= LANE  # there is a step less than there are numbers
    guard = one << _HIGH_GUARD
    return (guard + (of >> LANE) - (of & one * 0xFFFF_FFFF) - one) & guard == guard


def bytes_rise(raw: bytes, width: int, start: int, stop: int) -> bool:
    """Whether bytes `start` to `stop` of each field of `width` bytes are above those of the field before. O(length).

    Here a lane is a field, and its first byte the highest, as bytes are compared;
    so the last field is in the lowest lane.  The guard is the byte before `start`.
    """
    lanes = len(raw) // width - 1
    mask, guard, one = _fields(width, start, stop, lanes)
    fields = int.from_bytes(raw, "big")
    return (guard + (fields & mask) - (fields >> 8 * width & mask) - one) & guard == guard


@functools.lru_cache(64)  # 24 MB at most
def _fields(width: int, start: int, stop: int, lanes: int) -> tuple[int, int, int]:
    """For `bytes_rise`: the bytes that are compared, the guards, and ones."""
    mask = bytes(start) + b"\xff" * (stop - start) + bytes(width - stop)
    guard = bytes(start - 1) + b"\x01" + bytes(width - start)
    one = bytes(width - 1) + b"\x01"
    return (
        int.from_bytes(mask * lanes, "big"),
        int.from_bytes(guard * lanes, "big"),
        int.from_bytes(one * lanes, "big"),
    )
