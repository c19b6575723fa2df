r"""One branch or leaf page, taken apart without trust.

Whoever calls has verified the page's checksum, so its bytes are what somebody
wrote; this module asks whether it was sense.  Nothing is used as an address
before it is bounds-checked (I10).

    header | prefix | slots: head, offset, length -> | zero | <- cells | P
             \_________________/                       |        |
              keys rise, lie in low <= key < high       |        cover the heap
              (I7), heads are their first bytes (I7)    zero     once, but for
                                                       (I10)     dead bytes (I10)

Speed: a file has a hundred cells a page, so nothing here is a loop over cells
in Python.  Each rule is one expression over whole columns of slots, which is
true for a good page; only when it is false a second look finds out where.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import add, lt
from typing import Final, NamedTuple

from cowdb import format as fmt

__all__ = ["Bounds", "Complain", "Page", "check_heap", "take_apart"]

HEAD_SIZE: Final = 4
"""Bytes of the key's suffix that stand in a slot."""

ZEROS: Final = bytes(max(fmt.PAGE_SIZES))

Complain = Callable[[str, str], None]
"""Told of a violation: the invariant and a sentence."""


class Bounds(NamedTuple):
    """What must be true of a page where it was found: its level, and low <= key < high (None: no bound)."""

    level: int
    low: bytes
    high: bytes | None


class Page(NamedTuple):
    """A branch or leaf whose slots and cell starts lie where they may.

    The key of cell i is ``prefix + suffixes[i]``; after it, at `ends[i]`, lies
    what the cell holds.  In a branch the key of cell 0 means minus infinity.
    """

    raw: bytes
    birth: int
    prefix: bytes
    heap: int
    dead: int
    offsets: Sequence[int]
    suffixes: list[bytes]
    ends: list[int]


def take_apart(raw: bytes, bounds: Bounds, complain: Complain) -> Page | None:
    """Check outline, heads and keys of a page; None if it has no slots and keys to speak of. O(page size)."""
    _, _, _, cells, _, birth, prefix_length, heap, dead, reserved = fmt.PAGE_HEADER.struct.unpack_from(raw)
    size = len(raw)
    leaf = bounds.level == 0
    longest = fmt.max_key_size(size)
    prefix_end = fmt.HEADER_SIZE + prefix_length
    slots = (prefix_end + 7) // 8 * 8
    slots_end = slots + fmt.SLOT_SIZE * cells
    if not slots_end <= heap <= size or cells < (1 if leaf else 2) or prefix_length > longest:
        outline = f"{cells} cells, a prefix of {prefix_length} bytes and its heap at {heap}"
        complain("I10", f"the page cannot have {outline}")
        return None
    if reserved or raw[prefix_end:slots].strip(b"\0") or raw[slots_end:heap] != ZEROS[: heap - slots_end]:
        complain("I10", "bytes of the page that are not in use are not zero")
    halves = struct.unpack_from(f"<{4 * cells}H", raw, slots)
    lengths, offsets = halves[0::4], halves[1::4]
    before = fmt.CELL_HEAD_SIZE if leaf else 0
    starts = [offset + before for offset in offsets] if leaf else offsets
    ends = list(map(add, starts, lengths))
    if min(offsets) < heap or max(ends) > size:
        complain("I10", "a slot leads outside of the heap")
        return None
    suffixes = [raw[start:end] for start, end in zip(starts, ends, strict=True)]
    heads = struct.unpack_from(f"<{2 * cells}I", raw, slots)[1::2]
    if struct.pack(f">{cells}I", *heads) != b"".join(_first_bytes(suffixes, lengths)):
        complain("I7", "the head in a slot is not the start of its key")
    prefix = raw[fmt.HEADER_SIZE : prefix_end]
    if prefix_length + max(lengths) > longest:
        complain("I10", f"it has a key of more than {longest} bytes")
    if not leaf and suffixes[0]:
        complain("I7", "the first cell of a branch has a key")
    _check_keys(prefix, suffixes if leaf else suffixes[1:], bounds, complain)
    return Page(raw, birth, prefix, heap, dead, offsets, suffixes, ends)


def _first_bytes(suffixes: list[bytes], lengths: Sequence[int]) -> list[bytes]:
    """The first four bytes of each suffix, zero-padded; cut or padded only where some suffix needs it."""
    if min(lengths) >= HEAD_SIZE:
        return [suffix[:HEAD_SIZE] for suffix in suffixes]
    if max(lengths) <= HEAD_SIZE:
        return [suffix.ljust(HEAD_SIZE, b"\0") for suffix in suffixes]
    return [suffix[:HEAD_SIZE].ljust(HEAD_SIZE, b"\0") for suffix in suffixes]


def _check_keys(prefix: bytes, suffixes: list[bytes], bounds: Bounds, complain: Complain) -> None:
    """Keys or separators rise strictly and lie between the separators around the page (I7)."""
    if not all(map(lt, suffixes, suffixes[1:])):
        key = next(prefix + second for first, second in pairwise(suffixes) if first >= second)
        complain("I7", f"key {key[:40]!r} is not above the one before it")
    first = prefix + suffixes[0]
    # A separator equal to the lower bound would leave no key to the child on its left.
    if first < bounds.low or (bounds.level and first == bounds.low):
        complain("I7", f"its first key {first[:40]!r} lies below the separator that leads to it")
    if bounds.high is not None and prefix + suffixes[-1] >= bounds.high:
        complain("I7", "its last key is not below the separator of the next page")


def check_heap(page: Page, stops: list[int], complain: Complain) -> None:
    """Cells, which end at `stops`, do not overlap; what they leave of the heap is zero and counted as dead.

    Why sorting starts and stops apart is enough: how many cells cover a byte is
    the number of starts up to it less the number of stops up to it.
    O(n log n) in cells.
    """
    size = len(page.raw)
    starts = sorted(page.offsets)
    stops = sorted(stops)
    if starts[0] == page.heap and stops[-1] == size and stops[:-1] == starts[1:] and not page.dead:
        return
    if stops[-1] > size or any(map(lt, starts[1:], stops)):
        complain("I10", "cells overlap or reach over the end of the page")
        return
    gaps = list(zip([page.heap, *stops], [*starts, size], strict=True))
    dead = sum(stop - start for start, stop in gaps)
    if dead != page.dead:
        complain("I10", f"{dead} bytes of the heap are dead, the page counts {page.dead}")
    if any(page.raw[start:stop] != ZEROS[: stop - start] for start, stop in gaps):
        complain("I10", "dead bytes of the heap are not zero")
