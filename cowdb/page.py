"""One slotted page: find a key in it, change it, divide it, seal it.

A `Page` is a window on P bytes.  A *clean* page looks into the mapping of the
file and is never changed.  A *dirty* page owns a `bytearray` of its own, the
copy that copy-on-write makes; it is edited in place until it is sealed.

    header | prefix | slots: head, offset, length -> | gap | <- cells

All keys of a page share its prefix, which is stored once.  A slot carries the
first four bytes of what follows the prefix (its *head*), so slots, taken as
integers, sort like keys: one binary search over an array of integers finds the
place, and cells are looked at only where heads are equal.

A branch is a page whose cells lead to child pages.  Its cell 0 stands for
minus infinity and has no key; cell i > 0 holds the shortest key that divides
child i - 1 from child i (a *separator*).  While a page is dirty, `kids[i]` is
child i if that one is dirty too, and the reference in the cell is blank.

Insertion never moves other cells.  Removal leaves a hole, which is zeroed and
counted in `dead`.  When the gap is used up the page is rebuilt from its
entries, without holes and with the longest prefix, or divided in two.

Prefix truncation and truncated separators: R. Bayer, K. Unterauer, "Prefix
B-trees", ACM TODS 2 (1977).  Heads in slots: G. Graefe, P. Larson, "B-tree
indexes and CPU caches", ICDE 2001 ("poor man's normalized keys").
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BranchEntry", "LeafEntry", "Page", "shortest_separator"]

LeafEntry = tuple[bytes, int, bytes]
"""A leaf's entry taken apart: whole key, kind and length, payload."""

BranchEntry = tuple[bytes, bytes, "Page | None"]
"""A branch's entry taken apart: separator, packed reference, the child if it is dirty."""

_HEADER: Final = fmt.PAGE_HEADER.struct
_HEADER_SIZE: Final = fmt.HEADER_SIZE
_REFERENCE_SIZE: Final = fmt.REFERENCE_SIZE
_COUNT_AT: Final = fmt.REFERENCE.offset("count")
_BLANK_REFERENCE: Final = bytes(fmt.REFERENCE_SIZE)
_CELL_HEAD: Final = fmt.CELL_HEAD_SIZE
_LENGTH_MASK: Final = fmt.LENGTH_MASK
_SLOT: Final = fmt.SLOT_SIZE
_FEW: Final = 4


def common_prefix_length(a: bytes, b: bytes) -> int:
    """Number of leading bytes that `a` and `b` share. O(length)."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    difference = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
    return length - (difference.bit_length() + 7) // 8


def shortest_separator(left: bytes, right: bytes) -> bytes:
    """The shortest key s with left < s <= right, for left < right. O(length)."""
    return right[: common_prefix_length(left, right) + 1]


def padded(length: int) -> int:
    """Bytes that a prefix of `length` takes: a multiple of a slot's size."""
    return (length + _SLOT - 1) & -_SLOT


class Page:
    """A branch or leaf; see the module's text.

    `at` is the page's byte offset within `data` and `start` the index within
    `words`, the same bytes as 64-bit integers, of slot 0.  `count` is the
    number of entries below a dirty page, kept current on the way down; `bits` is
    the packed reference to a dirty page, once it is sealed.
    """

    __slots__ = ("at", "bits", "cells", "count", "data", "dead", "heap", "kids", "level", "prefix", "start", "words")

    data: Any
    words: Any
    kids: list[Page | None] | None
    bits: int

    def __init__(self, data: Any, words: Any, at: int) -> None:
        """A clean page at byte offset `at` of `data`; its header was checked by `Space.meet`. O(1)."""
        self.data = data
        self.words = words
        self.at = at
        base = at >> 3
        lead = words[base]
        tail = words[base + 3]
        self.cells = lead >> 48
        self.level = lead >> 40 & 0xFF
        length = tail & 0xFFFF
        self.prefix = data[at + _HEADER_SIZE : at + _HEADER_SIZE + length] if length else b""
        self.heap = tail >> 16 & 0xFFFF
        self.dead = tail >> 32 & 0xFFFF
        self.start: int = base + (_HEADER_SIZE + 7 + length >> 3)
        self.count = 0
        self.kids = None

    # ------------------------------------------------------------ making

    @classmethod
    def build_leaf(cls, entries: list[LeafEntry], size: int) -> Page:
        """A dirty leaf of `size` bytes that holds `entries`, which must fit. O(entries)."""
        page = cls._empty(size, 0)
        page._fill(  # noqa: SLF001 - a class method of its own class
            [entry[0] for entry in entries],
            [info.to_bytes(_CELL_HEAD, "little") for _, info, _ in entries],
            [entry[2] for entry in entries],
            _best_prefix(entries, 0),
        )
        page.count = len(entries)
        return page

    @classmethod
    def build_branch(cls, entries: list[BranchEntry], size: int, level: int) -> Page:
        """A dirty branch of `size` bytes; the key of the first entry is not stored. O(entries)."""
        page = cls._empty(size, level)
        prefix = _best_prefix(entries, 1)
        keys = [entry[0] for entry in entries]
        keys[0] = prefix
        page._fill(  # noqa: SLF001 - a class method of its own class
            keys, [b""] * len(entries), [entry[1] for entry in entries], prefix
        )
        page.kids = [entry[2] for entry in entries]
        page.count = sum(map(page.child_count, range(len(entries))))
        return page

    @classmethod
    def _empty(cls, size: int, level: int) -> Page:
        page = cls.__new__(cls)
        page.data = bytearray(size)
        page.words = memoryview(page.data).cast("Q")
        page.at = 0
        page.level = level
        page.kids = None
        return page

    def _fill(self, keys: list[bytes], leads: list[bytes], payloads: list[bytes], prefix: bytes) -> None:
        """Lay out cells one after the other up to the page's end."""
        cut = len(prefix)
        suffixes = [key[cut:] for key in keys] if cut else keys
        heap = b"".join([part for cell in zip(leads, suffixes, payloads, strict=True) for part in cell])
        data = self.data
        offset = self.heap = len(data) - len(heap)
        if offset < _HEADER_SIZE + padded(cut) + _SLOT * len(keys):
            # Entries are measured before: only cells that overlap, of a forged page, can turn out larger (I10).
            raise CorruptionError(-1, "its cells overlap")
        data[offset:] = heap
        data[_HEADER_SIZE : _HEADER_SIZE + cut] = prefix
        self.start = _HEADER_SIZE + padded(cut) >> 3
        words = self.words
        from_bytes = int.from_bytes
        for index, (lead, suffix, payload) in enumerate(zip(leads, suffixes, payloads, strict=True), self.start):
            length = len(suffix)
            head = from_bytes(suffix[:4], "big") << (0 if length > 3 else 8 * (4 - length))
            words[index] = head << 32 | offset << 16 | length
            offset += len(lead) + length + len(payload)
        self.cells = len(keys)
        self.prefix = prefix
        self.dead = 0

    def copy(self, size: int, count: int) -> Page:
        """A dirty copy of this clean page, with `count` entries below it. O(size)."""
        page = Page.__new__(Page)
        at = self.at
        page.data = bytearray(self.data[at : at + size])
        page.words = memoryview(page.data).cast("Q")
        page.at = 0
        page.start = self.start - (at >> 3)
        page.cells = self.cells
        page.level = self.level
        page.prefix = self.prefix
        page.heap = self.heap
        page.dead = self.dead
        page.count = count
        page.kids = [None] * self.cells if self.level else None
        return page

    # ------------------------------------------------------------ looking

    def _boundary(self, key: bytes, low: int, skip: int, after: bool) -> int:
        """Index of the first cell, from cell `low` on, whose key is >= `key` (> `key` if `after`).

        `skip` bytes stand in a cell before its key.  O(log cells).
        """
        prefix = self.prefix
        if prefix:
            lead = key[: len(prefix)]
            if lead != prefix:
                return low if lead < prefix else self.cells
            key = key[len(prefix) :]
        length = len(key)
        head = int.from_bytes(key[:4], "big") << (0 if length > 3 else 8 * (4 - length))
        words = self.words
        start = self.start
        stop = start + self.cells
        first = bisect_left(words, head << 32, start + low, stop)
        if first == stop or words[first] >> 32 != head:
            return first - start
        # Heads are equal from `first` to `last`: their cells decide.
        last = bisect_left(words, head + 1 << 32, first, stop)
        data = self.data
        base = self.at + skip
        while first < last:
            middle = first + last >> 1
            slot = words[middle]
            offset = base + (slot >> 16 & 0xFFFF)
            suffix = data[offset : offset + (slot & 0xFFFF)]
            if suffix < key or (after and suffix == key):
                first = middle + 1
            else:
                last = middle
        return first - start

    def lower_bound(self, key: bytes) -> int:
        """In a leaf: index of the first entry whose key is not less than `key`. O(log cells)."""
        return self._boundary(key, 0, _CELL_HEAD, False)

    def child_index(self, key: bytes) -> int:
        """In a branch: index of the child whose range holds `key`. O(log cells)."""
        return self._boundary(key, 1, 0, True) - 1

    def child_before(self, key: bytes) -> int:
        """In a branch: index of the child whose range holds the keys just below `key`. O(log cells)."""
        return self._boundary(key, 1, 0, False) - 1

    def key(self, index: int) -> bytes:
        """The whole key of cell `index` (of a branch: its separator, empty for cell 0)."""
        slot = self.words[self.start + index]
        offset = self.at + (slot >> 16 & 0xFFFF) + (0 if self.level else _CELL_HEAD)
        if self.level and not index:
            return b""
        return bytes(self.prefix + self.data[offset : offset + (slot & 0xFFFF)])

    def has_key(self, index: int, key: bytes) -> bool:
        """True if leaf entry `index` exists and has this key, which `lower_bound` led to."""
        if index >= self.cells:
            return False
        slot = self.words[self.start + index]
        offset = self.at + (slot >> 16 & 0xFFFF) + _CELL_HEAD
        return bool(self.data[offset : offset + (slot & 0xFFFF)] == key[len(self.prefix) :]) and key.startswith(
            self.prefix
        )

    def payload(self, index: int) -> tuple[int, bytes]:
        """Kind and length, and payload, of leaf entry `index`."""
        info, offset = self.place(index)
        return info, bytes(self.data[offset : offset + (info & _LENGTH_MASK)])

    def place(self, index: int) -> tuple[int, int]:
        """Kind and length of the payload of leaf entry `index`, and where it begins within `data`."""
        slot = self.words[self.start + index]
        offset = self.at + (slot >> 16 & 0xFFFF)
        data = self.data
        try:
            info = data[offset] | data[offset + 1] << 8
        except IndexError:
            raise self._broken() from None
        return info, offset + _CELL_HEAD + (slot & 0xFFFF)

    def reference(self, index: int) -> int:
        """The packed reference of child `index`, as one integer."""
        slot = self.words[self.start + index]
        offset = self.at + (slot >> 16 & 0xFFFF) + (slot & 0xFFFF)
        return int.from_bytes(self.data[offset : offset + _REFERENCE_SIZE], "little")

    def child_count(self, index: int) -> int:
        """Entries below child `index`: from the dirty child, or from the reference to the clean one."""
        if self.kids is not None:
            kid = self.kids[index]
            if kid is not None:
                return kid.count
        slot = self.words[self.start + index]
        offset = self.at + (slot >> 16 & 0xFFFF) + (slot & 0xFFFF) + _COUNT_AT
        return int.from_bytes(self.data[offset : offset + 6], "little")

    def count_before(self, index: int) -> int:
        """Entries below the children before child `index`. O(index)."""
        return sum(map(self.child_count, range(index)))

    def child_of_rank(self, rank: int) -> tuple[int, int]:
        """Index of the child that holds entry number `rank` below this branch, and its number there. O(cells)."""
        for index in range(self.cells):
            count = self.child_count(index)
            if rank < count:
                return index, rank
            rank -= count
        raise CorruptionError(-1, "a branch counts more entries than its children")

    # ------------------------------------------------------------ many at once

    def _places(self, data: bytes, first: int, last: int) -> tuple[list[int], list[int]]:
        """Suffix lengths and cell offsets of cells `first` to `last` - 1 of the page whose bytes are `data`."""
        quarters = memoryview(data).cast("H")
        begin = ((self.start << 3) - self.at >> 1) + 4 * first
        end = begin + 4 * (last - first)
        # A slot is four 16-bit integers: length, offset, and the two halves of the head.
        return quarters[begin:end:4].tolist(), quarters[begin + 1 : end : 4].tolist()

    def items(self, first: int, last: int, size: int, fetch: Callable[[bytes], bytes]) -> list[tuple[bytes, bytes]]:
        """Entries `first` to `last` - 1 of a leaf; `fetch` gets the value behind an overflow reference."""
        data = bytes(self.data[self.at : self.at + size])
        prefix = self.prefix
        lengths, offsets = self._places(data, first, last)
        alike = _alike(data, prefix, lengths, offsets)
        if alike is not None:
            return alike
        found: list[tuple[bytes, bytes]] = []
        append = found.append
        for length, offset in zip(lengths, offsets, strict=True):
            middle = offset + 2 + length
            try:
                info = data[offset] | data[offset + 1] << 8
            except IndexError:
                raise self._broken() from None
            if info > _LENGTH_MASK:
                append((prefix + data[offset + 2 : middle], fetch(data[middle : middle + _REFERENCE_SIZE])))
            else:
                append((prefix + data[offset + 2 : middle], data[middle : middle + info]))
        return found

    def keys(self, first: int, last: int, size: int) -> list[bytes]:
        """Keys `first` to `last` - 1 of a leaf."""
        data = bytes(self.data[self.at : self.at + size])
        prefix = self.prefix
        lengths, offsets = self._places(data, first, last)
        return [prefix + data[at + 2 : at + 2 + length] for length, at in zip(lengths, offsets, strict=True)]

    def leaf_entries(self) -> list[LeafEntry]:
        """All entries of a dirty leaf, taken apart. O(cells)."""
        data = bytes(self.data)
        prefix = bytes(self.prefix)
        found = []
        for slot in self.words[self.start : self.start + self.cells].tolist():
            offset = slot >> 16 & 0xFFFF
            middle = offset + 2 + (slot & 0xFFFF)
            try:
                info = data[offset] | data[offset + 1] << 8
            except IndexError:
                raise self._broken() from None
            found.append((prefix + data[offset + 2 : middle], info, data[middle : middle + (info & _LENGTH_MASK)]))
        return found

    def branch_entries(self) -> list[BranchEntry]:
        """All entries of a dirty branch, taken apart. O(cells)."""
        assert self.kids is not None
        data = bytes(self.data)
        prefix = bytes(self.prefix)
        found: list[BranchEntry] = []
        for slot, kid in zip(self.words[self.start : self.start + self.cells].tolist(), self.kids, strict=True):
            offset = slot >> 16 & 0xFFFF
            middle = offset + (slot & 0xFFFF)
            key = prefix + data[offset:middle] if found else b""
            found.append((key, data[middle : middle + _REFERENCE_SIZE], kid))
        return found

    # ------------------------------------------------------------ changing a dirty page

    def used(self) -> int:
        """Bytes that header, prefix, slots and live cells take."""
        taken: int = (self.start << 3) + _SLOT * self.cells + len(self.data) - self.heap - self.dead
        return taken

    def insert(self, index: int, key: bytes, info: int, payload: bytes) -> bool:
        """Put an entry at `index` of a leaf; False, and nothing changed, if it needs a rebuilt page."""
        return self._insert(index, key, info.to_bytes(_CELL_HEAD, "little"), payload)

    def insert_child(self, index: int, separator: bytes, kid: Page) -> bool:
        """Put a dirty child at `index` > 0 of a branch; False, and nothing changed, if it needs a rebuilt page."""
        if not self._insert(index, separator, b"", _BLANK_REFERENCE):
            return False
        assert self.kids is not None
        self.kids.insert(index, kid)
        return True

    def _insert(self, index: int, key: bytes, lead: bytes, payload: bytes) -> bool:
        prefix = self.prefix
        if prefix:
            if not key.startswith(prefix):
                return False
            key = key[len(prefix) :]
        length = len(key)
        heap = self.heap - len(lead) - length - len(payload)
        place = (self.start + index) * _SLOT
        end = (self.start + self.cells) * _SLOT
        if heap < end + _SLOT:
            return False
        data = self.data
        data[heap : self.heap] = lead + key + payload
        data[place + _SLOT : end + _SLOT] = data[place:end]
        head = int.from_bytes(key[:4], "big") << (0 if length > 3 else 8 * (4 - length))
        self.words[self.start + index] = head << 32 | heap << 16 | length
        self.heap = heap
        self.cells += 1
        return True

    def replace(self, index: int, info: int, payload: bytes) -> bool:
        """Give leaf entry `index` another payload of the same size; False if the size differs."""
        slot = self.words[self.start + index]
        offset = slot >> 16 & 0xFFFF
        data = self.data
        try:
            old = data[offset] | data[offset + 1] << 8
            if (old ^ info) & _LENGTH_MASK:
                return False
            data[offset : offset + _CELL_HEAD] = info.to_bytes(_CELL_HEAD, "little")
            offset += _CELL_HEAD + (slot & 0xFFFF)
            data[offset : offset + len(payload)] = payload
        except (IndexError, BufferError):
            raise self._broken() from None
        return True

    def remove(self, index: int) -> None:
        """Take cell `index` out; its bytes become a zeroed hole (of a branch: never cell 0)."""
        slot = self.words[self.start + index]
        offset = slot >> 16 & 0xFFFF
        data = self.data
        if self.level:
            assert self.kids is not None
            assert index
            size = (slot & 0xFFFF) + _REFERENCE_SIZE
            del self.kids[index]
        else:
            try:
                info = data[offset] | data[offset + 1] << 8
            except IndexError:
                raise self._broken() from None
            size = _CELL_HEAD + (slot & 0xFFFF) + (info & _LENGTH_MASK)
        try:
            data[offset : offset + size] = bytes(size)
        except BufferError:
            raise self._broken() from None
        place = (self.start + index) * _SLOT
        end = (self.start + self.cells) * _SLOT
        data[place : end - _SLOT] = data[place + _SLOT : end]
        data[end - _SLOT : end] = bytes(_SLOT)
        self.dead += size
        self.cells -= 1

    def dirty_kids(self) -> list[tuple[int, Page]]:
        """Index and page of each dirty child of a dirty branch, in order. O(cells), fast if they are few."""
        kids = self.kids
        assert kids is not None
        dirty = list(filter(None, kids))
        if len(dirty) <= _FEW:
            return [(kids.index(kid), kid) for kid in dirty]
        return [(index, kid) for index, kid in enumerate(kids) if kid is not None]

    def set_reference(self, index: int, bits: int) -> None:
        """Write the reference of child `index`, whose page was sealed."""
        slot = self.words[self.start + index]
        offset = (slot >> 16 & 0xFFFF) + (slot & 0xFFFF)
        try:
            self.data[offset : offset + _REFERENCE_SIZE] = bits.to_bytes(_REFERENCE_SIZE, "little")
        except BufferError:
            raise self._broken() from None

    def set_payload(self, index: int, payload: bytes) -> None:
        """Overwrite the payload of leaf entry `index` with one of the same length."""
        slot = self.words[self.start + index]
        offset = (slot >> 16 & 0xFFFF) + _CELL_HEAD + (slot & 0xFFFF)
        try:
            self.data[offset : offset + len(payload)] = payload
        except BufferError:
            raise self._broken() from None

    def overflow_entries(self) -> list[tuple[int, bytes]]:
        """Index and packed reference of every leaf entry whose value lies in an overflow run. O(cells)."""
        found = []
        data = self.data
        at = self.at
        for index, slot in enumerate(self.words[self.start : self.start + self.cells].tolist()):
            offset = at + (slot >> 16 & 0xFFFF)
            try:
                lead = data[offset + 1]
            except IndexError:
                raise self._broken() from None
            if lead >> 6 == fmt.OVERFLOW:
                offset += _CELL_HEAD + (slot & 0xFFFF)
                found.append((index, bytes(data[offset : offset + _REFERENCE_SIZE])))
        return found

    def seal(self, number: int, birth: int) -> int:
        """Write number, birth and checksum into the header; the reference to the page, as one integer."""
        kind = fmt.BRANCH_KIND if self.level else fmt.LEAF_KIND
        data = self.data
        if not 0 <= self.count <= fmt.MAX_U48 or self.dead > len(data):
            raise self._broken()
        _HEADER.pack_into(
            data, 0, 0, kind, self.level, self.cells, number, birth, len(self.prefix), self.heap, self.dead, 0
        )
        checksum = crc32c(memoryview(data)[fmt.CHECKSUM_SIZE :])
        data[: fmt.CHECKSUM_SIZE] = checksum.to_bytes(fmt.CHECKSUM_SIZE, "little")
        return number | birth << 48 | self.count << 96 | checksum << 144

    def _broken(self) -> CorruptionError:
        """What is raised when a cell turns out to lie outside of its page: the page is forged (I10).

        Cells are bounds-checked where they are used, by Python itself, so that good pages pay nothing.
        """
        number = int.from_bytes(self.data[self.at + 8 : self.at + 16], "little")
        return CorruptionError(number, "a cell or a count of it makes no sense")


# ---------------------------------------------------------------- sizes and dividing


def _best_prefix(entries: list[Any], first: int) -> bytes:
    """The prefix that makes the page smallest; `first` entries at the start take no part."""
    cells = len(entries) - first
    if cells < 2:
        return b""
    key: bytes = entries[first][0]
    length = common_prefix_length(key, entries[-1][0])
    return key[:length] if cells * length > padded(length) else b""


def built_size(entries: list[Any], first: int, fixed: int) -> int:
    """Bytes of the page that these entries build; `fixed` bytes of each cell are neither key nor payload.

    `first` is 1 for a branch, whose cell 0 stores no key.
    """
    prefix = len(_best_prefix(entries, first))
    keys = sum(len(entry[0]) for entry in entries[first:])
    payloads = sum(len(entry[-1]) for entry in entries) if not first else 0
    return (
        _HEADER_SIZE
        + padded(prefix)
        + len(entries) * (_SLOT + fixed)
        + keys
        - (len(entries) - first) * prefix
        + payloads
    )


def _alike(data: bytes, prefix: bytes, lengths: list[int], offsets: list[int]) -> list[tuple[bytes, bytes]] | None:
    """Entries of the leaf whose bytes are `data`, if all of them are of one shape; else None.

    Then one struct takes each cell apart, in a third of the time.
    """
    count = len(offsets)
    if count < _FEW or lengths.count(lengths[0]) != count:
        return None
    try:
        first, last = offsets[0], offsets[-1]
        info = data[first] | data[first + 1] << 8
        if info > _LENGTH_MASK or info != data[last] | data[last + 1] << 8:
            return None
        cells = map(fmt.leaf_cell(lengths[0], info).unpack_from, repeat(data), offsets)
        found = [(prefix + suffix, value) for kind, suffix, value in cells if kind == info]
    except (IndexError, struct.error):
        return None  # a cell outside its page: that is for the slow way to say
    return found if len(found) == count else None


def leaf_size(entries: list[LeafEntry]) -> int:
    """Bytes of the leaf that these entries build. O(entries)."""
    return built_size(entries, 0, _CELL_HEAD)


def branch_size(entries: list[BranchEntry]) -> int:
    """Bytes of the branch that these entries build. O(entries)."""
    return built_size(entries, 1, _REFERENCE_SIZE)


def series_end(keys: list[bytes], lengths: list[int], index: int, lower: bytes | None, upper: bytes | None) -> int:
    """Where to divide a leaf in which the new key `index` ends a series that comes in order; 0 if none seems to.

    Keys like ``sensor 7, time`` come in order within each of many series.  Divided
    in the middle, a leaf would stay half empty for ever, for what follows goes to
    its right half alone.  `lower` and `upper` are the separators that bound the
    leaf, `lengths` the bytes of each entry.  A key in the right half is taken for
    the last of a series if more of its bytes are those of `lower` than of the key
    behind it: then the series has filled a leaf before this one.  What is behind it
    stays with it if that is little, and else gets a leaf of its own.  The other way
    round for a series that falls.  An eighth of the bytes goes to each side at
    least: so no key, whatever it looks like, makes leaves of nothing.  O(entries).
    """
    key = keys[index]
    count = len(keys)
    place = 0
    if index >= count // 2:
        behind = keys[index + 1] if index + 1 < count else upper
        if lower is not None and behind is not None and _is_nearer(key, lower, behind):
            place = index if 4 * (count - 1 - index) < count else index + 1
    else:
        before = keys[index - 1] if index else lower
        if upper is not None and before is not None and _is_nearer(key, upper, before):
            place = index + 1 if 4 * index < count else index
    if not place:
        return 0
    least = sum(lengths) // 8
    right = sum(lengths[place:])
    while right < least and place > 1:
        place -= 1
        right += lengths[place]
    left = sum(lengths[:place])
    while left < least and place < count - 1:
        left += lengths[place]
        place += 1
    return place


def _is_nearer(key: bytes, one: bytes, other: bytes) -> bool:
    """Whether `key` begins with more bytes of `one` than of `other`."""
    return common_prefix_length(one, key) > common_prefix_length(other, key)


def middle(entries: list[Any], size: int, measure: Callable[[list[Any]], int], lengths: list[int], least: int) -> int:
    """Where to divide `entries` so that both parts fit in pages of `size` bytes, as evenly as can be.

    `lengths` are the bytes of each entry without any prefix; each part gets at
    least `least` entries (2 in a branch).  A fitting place
    always exists: a cell takes at most about half a page, and a key that breaks
    the shared prefix of the others stands at one end.  O(entries).
    """
    half = sum(lengths) / 2
    total = 0
    place = 0
    while total < half:
        total += lengths[place]
        place += 1
    if total - half > half - (total - lengths[place - 1]):
        place -= 1
    limit = len(entries)
    for step in range(limit):
        for candidate in (place + step, place - step):
            if least <= candidate <= limit - least and measure(entries[:candidate]) <= size >= measure(
                entries[candidate:]
            ):
                return candidate
    raise CorruptionError(-1, "its cells overlap: they fit into no two pages")
