r"""One branch or leaf page, taken apart without trust.

Whoever calls has verified the page's checksum, so its bytes are what somebody
wrote; this module asks whether it was sense.  Nothing is used as an address
before it is bounds-checked (I10).

    header | prefix | slots: head, offset, length -> | zero | <- cells | P
             \_________________/                       |        |
              keys rise, lie in low <= key < high       |        cover the heap
              (I7), heads are their first bytes (I7)    zero     once, but for
                                                       (I10)     dead bytes (I10)

Speed: a file has a hundred cells a page, so next to nothing here is a loop over
cells in Python.  The slots are taken as one integer, and so are the first few
bytes of all cells; each rule is one expression over such columns (`columns`),
which is true for a good page.  Only when it is false a second look finds out
where.  Keys are looked at one by one only where heads are equal: heads are
proved to be the first bytes of the keys, so if they rise, the keys do.

Where all keys of a leaf are as long, and all values, as in files of numbers,
hashes or records of one shape, cells lie in the heap at one distance from each
other.  Then each byte of a cell's front is a column by itself, a slice of the
page with a step, and `sound_alike` proves the whole leaf in a few comparisons of
such slices.  It only ever says yes; what is wrong is for the others to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import lt
from struct import Struct
from typing import Final, NamedTuple

from cowdb import format as fmt
from cowdb.columns import LANE, any_above, any_below, bytes_rise, column, first_lanes, numbers, ones, rises, swapped

__all__ = ["Bounds", "Complain", "Page", "check_heap", "sound_alike", "take_apart"]

HEAD_SIZE: Final = 4
"""Bytes of the key's suffix that stand in a slot."""

ZEROS: Final = bytes(max(fmt.PAGE_SIZES))

_FRONT: Final = 24
"""Bytes of a cell that are taken out of the heap: the first lane of them is compared with the slot, all only where
heads are equal."""

_HALF: Final = 0xFFFF
_WORD: Final = 0xFFFF_FFFF
_OFFSET_BITS: Final = 16  # a slot, as an integer: head << 32 | offset << 16 | length
_HEAD_BITS: Final = 32

Complain = Callable[[str, str], None]
"""Told of a violation: the invariant and a sentence."""


class Bounds(NamedTuple):
    """What must be true of a page where it was found: its level, and low <= key < high (None: no bound)."""

    level: int
    low: bytes
    high: bytes | None


class Slots:
    """The slots of a page, as columns. What they lead to is not looked at."""

    def __init__(self, raw: bytes, cells: int, lead: int) -> None:
        """The `cells` slots in `raw`; `lead` bytes of each cell come before the key. O(cells)."""
        one = ones(cells)
        slots = column(raw)
        self.raw: Final = raw
        self.cells: Final = cells
        self.lead: Final = lead
        self.one: Final = one
        self.heads: Final = slots >> _HEAD_BITS & one * _WORD
        self.starts: Final = slots >> _OFFSET_BITS & one * _HALF
        self.lengths: Final = slots & one * _HALF
        self.ends: Final = self.starts + self.lengths + one * lead
        length = self.lengths & _HALF
        self.length: Final = length if self.lengths == one * length else None
        """How long all suffixes are; None if they differ. They do not where keys are numbers or hashes."""

    def stray(self, heap: int, size: int) -> bool:
        """Whether a slot leads out of the heap, or the key there does. O(cells)."""
        return any_below(self.starts, heap, self.one) or any_above(self.ends, size, self.one)

    def any_length_above(self, limit: int) -> bool:
        """Whether the suffix of a key has more than `limit` bytes. O(cells)."""
        return any_above(self.lengths, limit, self.one) if self.length is None else self.length > limit

    def any_length_below(self, least: int) -> bool:
        """Whether the suffix of a key has fewer than `least` bytes. O(cells)."""
        return any_below(self.lengths, least, self.one) if self.length is None else self.length < least


class Page:
    """A branch or leaf whose cells begin, and whose keys end, within the heap.

    The key of cell i is ``prefix + suffixes[i]``; after it, at `ends[i]`, lies
    what the cell holds.  In a branch the key of cell 0 means minus infinity.
    What a check does not need of a sound page is made when somebody asks for it.
    """

    def __init__(self, raw: bytes, header: tuple[int, ...], level: int, slots: Slots) -> None:
        """The page of `raw`; its outline was checked, and that no slot is astray. O(cells)."""
        _, _, _, cells, _, birth, prefix_length, heap, dead, _ = header
        self.raw: Final = raw
        self.level: Final = level
        self.birth: Final = birth
        self.cells: Final = cells
        self.prefix: Final = raw[fmt.HEADER_SIZE : fmt.HEADER_SIZE + prefix_length]
        self.heap: Final = heap
        self.dead: Final = dead
        self.offsets: Final = numbers(slots.starts, cells)
        """Where each cell begins."""
        padded = raw + ZEROS[:_FRONT]
        self._slots: Final = slots
        self._fronts: Final = b"".join([padded[at : at + _FRONT] for at in self.offsets])
        self._firsts: Final = first_lanes(self._fronts, _FRONT)
        self._words: Final = self._firsts & slots.one * _HALF
        payloads = slots.one * fmt.REFERENCE_SIZE if level else self._words & slots.one * fmt.LENGTH_MASK
        self._stops: Final = slots.ends + payloads

    # ------------------------------------------------------------ cells, one by one

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where the key of each cell ends and what it holds begins."""
        return numbers(self._slots.ends, self.cells)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Where each cell ends, if what it holds is as long as it says."""
        return numbers(self._stops, self.cells)

    @cached_property
    def words(self) -> tuple[int, ...]:
        """Kind and length of what each cell of a leaf holds, as they stand in the cell."""
        return numbers(self._words, self.cells)

    @cached_property
    def suffixes(self) -> list[bytes]:
        """What follows the prefix in each key."""
        lead, length = self._slots.lead, self._slots.length
        if length is not None:
            raw = self.raw[lead:]
            return [raw[at : at + length] for at in self.offsets]
        raw = self.raw
        return [raw[at + lead : end] for at, end in zip(self.offsets, self.ends, strict=True)]

    def suffix(self, index: int) -> bytes:
        """What follows the prefix in the key of one cell. O(cells), but quick."""
        start = self.offsets[index] + self._slots.lead
        return self.raw[start : start + (self._slots.lengths >> LANE * index & _HALF)]

    # ------------------------------------------------------------ cells, all at once

    @property
    def inline(self) -> bool:
        """Whether all values lie in the leaf itself. O(cells)."""
        return not self.any_word_above(fmt.LENGTH_MASK)

    def any_key_above(self, limit: int) -> bool:
        """Whether a key has more than `limit` bytes. O(cells)."""
        return self._slots.any_length_above(limit - len(self.prefix))

    def any_word_above(self, limit: int) -> bool:
        """Whether a cell of a leaf holds more than `limit` bytes, or another kind of payload. O(cells)."""
        return any_above(self._words, limit, self._slots.one)

    @property
    def heads_hold(self) -> bool:
        """Whether the head in each slot is the first bytes of the key's suffix, zero-padded (I7). O(cells)."""
        slots = self._slots
        one = slots.one
        keys = self._firsts >> 8 * slots.lead & one * _WORD
        if slots.any_length_below(HEAD_SIZE):
            mask = 0
            for index in range(HEAD_SIZE):  # only a key that has a byte of this index makes a carry
                mask |= (slots.lengths + one * (_HALF - index) >> 16 & one) * (0xFF << 8 * index)
            keys &= mask
        return keys == swapped(slots.raw) & one * _WORD

    @property
    def heads_rise(self) -> bool:
        """Whether each head is above the one before it; then so are the keys, if the heads hold. O(cells)."""
        heads = self._slots.heads
        if self.cells > 1 and heads & _WORD >= heads >> LANE & _WORD:  # so it is where all heads are equal
            return False
        return rises(heads, self._slots.one)

    @property
    def fronts_rise(self) -> bool:
        """Whether the first bytes of the keys of a leaf show that they rise; False says nothing. O(cells)."""
        length, lead = self._slots.length, self._slots.lead
        if not length or not lead:
            return False
        return bytes_rise(self._fronts, _FRONT, lead, min(lead + length, _FRONT))

    @property
    def in_a_row(self) -> bool:
        """Whether the cells fill the heap in the order of their keys, from either end, without a gap. O(cells)."""
        starts, stops, size = self._slots.starts, self._stops, len(self.raw)
        last = LANE * (self.cells - 1)
        if starts & _HALF == self.heap and stops >> last == size:
            return starts >> LANE == stops & (1 << last) - 1
        if starts >> last == self.heap and stops & _HALF == size:
            return stops >> LANE == starts & (1 << last) - 1
        return False


def take_apart(raw: bytes, bounds: Bounds, complain: Complain) -> Page | None:
    """Check outline, heads and keys of a page; None if it has no slots and keys to speak of. O(page size)."""
    header = fmt.PAGE_HEADER.struct.unpack_from(raw)
    _, _, _, cells, _, _, prefix_length, heap, _, reserved = header
    size = len(raw)
    longest = fmt.max_key_size(size)
    prefix_end = fmt.HEADER_SIZE + prefix_length
    slots_start = (prefix_end + 7) // 8 * 8
    slots_end = slots_start + fmt.SLOT_SIZE * cells
    if not slots_end <= heap <= size or cells < (2 if bounds.level else 1) or prefix_length > longest:
        outline = f"{cells} cells, a prefix of {prefix_length} bytes and its heap at {heap}"
        complain("I10", f"the page cannot have {outline}")
        return None
    if reserved or raw[prefix_end:slots_start].strip(b"\0") or raw[slots_end:heap] != ZEROS[: heap - slots_end]:
        complain("I10", "bytes of the page that are not in use are not zero")
    slots = Slots(raw[slots_start:slots_end], cells, 0 if bounds.level else fmt.CELL_HEAD_SIZE)
    if slots.stray(heap, size):
        complain("I10", "a slot leads outside of the heap")
        return None
    page = Page(raw, header, bounds.level, slots)
    heads_hold = page.heads_hold
    if not heads_hold:
        complain("I7", "the head in a slot is not the start of its key")
    if page.any_key_above(longest):
        complain("I10", f"it has a key of more than {longest} bytes")
    if bounds.level and page.suffix(0):
        complain("I7", "the first cell of a branch has a key")
    if not (heads_hold and (page.heads_rise or page.fronts_rise)):
        _check_order(page, bounds, complain)
    _check_bounds(page, bounds, complain)
    return page


def sound_alike(raw: bytes, bounds: Bounds, cells: int) -> bool:
    """Whether a leaf is sound and has so many cells, one or more, that are all of one shape. O(page size).

    Sound is what `take_apart` and `check_heap` find no fault in, with no value
    that is too long for a leaf or lies elsewhere.
    """
    _, _, _, found, _, _, prefix_length, heap, dead, reserved = fmt.PAGE_HEADER.struct.unpack_from(raw)
    size = len(raw)
    prefix_end = fmt.HEADER_SIZE + prefix_length
    slots_start = (prefix_end + 7) // 8 * 8
    slots_end = slots_start + fmt.SLOT_SIZE * cells
    if reserved or dead or not 0 < cells == found or not slots_end <= heap < size or (size - heap) % cells:
        return False
    if raw[prefix_end:slots_start].strip(b"\0") or raw[slots_end:heap] != ZEROS[: heap - slots_end]:
        return False

    # The shape, as the first slot has it.  It makes all cells so long, and so far from each other.
    step = (size - heap) // cells
    lead = fmt.CELL_HEAD_SIZE
    slots = raw[slots_start:slots_end]
    length = slots[0] | slots[1] << 8
    value = step - lead - length
    if not 0 <= value <= fmt.max_inline_value(size) or prefix_length + length > fmt.max_key_size(size):
        return False
    if raw[heap::step] != bytes([value & 0xFF]) * cells or raw[heap + 1 :: step] != bytes([value >> 8]) * cells:
        return False

    # The slots are, in some order, those that cells like these must have.
    wanted = bytearray(_headless(heap, step, cells, length))
    for index in range(min(length, HEAD_SIZE)):
        wanted[7 - index :: fmt.SLOT_SIZE] = raw[heap + lead + index :: step]
    whole, heads, places = _slots(cells)
    if sorted(whole.unpack(slots)) != sorted(whole.unpack(wanted)):
        return False

    # Keys rise: their heads do, or they themselves.
    if not _rise(heads.unpack(slots)):
        key_at = dict(zip(range(heap, size, step), _keys(cells, length, value).unpack_from(raw, heap), strict=True))
        if not _rise([key_at[place] for place in places.unpack(slots)]):
            return False
    prefix = raw[fmt.HEADER_SIZE : prefix_end]
    start = (slots[2] | slots[3] << 8) + lead
    if prefix + raw[start : start + length] < bounds.low:
        return False
    start = (slots[-6] | slots[-5] << 8) + lead
    return bounds.high is None or prefix + raw[start : start + length] < bounds.high


def _rise(column: Sequence[int] | Sequence[bytes]) -> bool:
    """Whether each is above the one before."""
    return all(map(lt, column, column[1:]))


@lru_cache(64)  # pages of one file have few shapes
def _headless(heap: int, step: int, cells: int, length: int) -> bytes:
    """The slots of cells at this distance from each other, in their order in the heap, without heads."""
    places = range(heap, heap + step * cells, step)
    return Struct(f"<{cells}Q").pack(*(place << 16 | length for place in places))


@lru_cache(64)  # pages of one file have few shapes
def _slots(cells: int) -> tuple[Struct, Struct, Struct]:
    """Takes slots apart: whole ones as numbers, only the heads, only the places."""
    return Struct(f"<{cells}Q"), Struct("<" + "4xI" * cells), Struct("<" + "2xH4x" * cells)


@lru_cache(64)  # pages of one file have few shapes
def _keys(cells: int, length: int, value: int) -> Struct:
    """Takes the keys out of cells of one shape."""
    return Struct(f"{fmt.CELL_HEAD_SIZE}x{length}s{value}x" * cells)


def _check_order(page: Page, bounds: Bounds, complain: Complain) -> None:
    """Keys or separators rise strictly (I7), looked at one by one."""
    suffixes = page.suffixes[1:] if bounds.level else page.suffixes
    if not all(map(lt, suffixes, suffixes[1:])):
        key = next(page.prefix + second for first, second in pairwise(suffixes) if first >= second)
        complain("I7", f"key {key[:40]!r} is not above the one before it")


def _check_bounds(page: Page, bounds: Bounds, complain: Complain) -> None:
    """Keys lie between the separators around the page, if they rise (I7)."""
    first = page.prefix + page.suffix(1 if bounds.level else 0)
    # A separator equal to the lower bound would leave no key to the child on its left.
    if first < bounds.low or (bounds.level and first == bounds.low):
        complain("I7", f"its first key {first[:40]!r} lies below the separator that leads to it")
    if bounds.high is not None and page.prefix + page.suffix(page.cells - 1) >= bounds.high:
        complain("I7", "its last key is not below the separator of the next page")


def check_heap(page: Page, complain: Complain) -> bool:
    """Cells do not overlap; what they leave of the heap is zero and counted as dead. False if a cell leaves the page.

    Why sorting starts and stops apart is enough: how many cells cover a byte is
    the number of starts up to it less the number of stops up to it.
    O(n log n) in cells.
    """
    if page.in_a_row and not page.dead:
        return True
    size = len(page.raw)
    starts = sorted(page.offsets)
    stops = sorted(page.stops)
    if starts[0] == page.heap and stops[-1] == size and stops[:-1] == starts[1:] and not page.dead:
        return True
    if stops[-1] > size or any(map(lt, starts[1:], stops)):
        complain("I10", "cells overlap or reach over the end of the page")
        return stops[-1] <= size
    gaps = list(zip([page.heap, *stops], [*starts, size], strict=True))
    dead = sum(stop - start for start, stop in gaps)
    if dead != page.dead:
        complain("I10", f"{dead} bytes of the heap are dead, the page counts {page.dead}")
    if any(page.raw[start:stop] != ZEROS[: stop - start] for start, stop in gaps):
        complain("I10", "dead bytes of the heap are not zero")
    return True
