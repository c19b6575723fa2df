"""The entries of one or two pages, taken apart, to lay them out anew: rebuild, divide, merge.

    page  ----->  [key payload] [key payload] ...  ----->  one page, or two
                       insert, remove

The sizes of any part of them are known from two sums and one comparison, so
looking for the place to divide costs O(1) a candidate.  What is decided, and every
byte that is laid out, is as in `cowdb.page` (`middle`, `built_size`, `build_leaf`).
"""

from __future__ import annotations

from native.frames import *
from native.memory import *
from native.page import *


@cython.final
@cython.no_gc_clear
@cython.cclass
class Cells:
    """Entries of pages of `size` bytes at `level`."""

    cells = cython.declare(cython.pointer[Cell])
    sums = cython.declare(cython.pointer[cython.longlong])  # of key lengths, then of payload lengths
    count = cython.declare(cython.int, visibility="readonly")
    room = cython.declare(cython.int)
    size = cython.declare(cython.int)
    level = cython.declare(cython.int)
    kids = cython.declare(list)
    held = cython.declare(list)  # what the pointers point into
    frames = cython.declare(Frames)  # where new pages get their memory, as those that were added have

    def __cinit__(self, size: cython.int, level: cython.int, frames: Frames = None):
        self.size = size
        self.level = level
        self.frames = frames
        self.held = []
        if level:
            self.kids = []

    def __dealloc__(self):
        PyMem_Free(self.cells)
        PyMem_Free(self.sums)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def reserve(self, more: cython.int) -> cython.int:
        """Make room for `more` entries."""
        if self.count + more <= self.room:
            return 0
        room: cython.int = self.count + more + 2
        cells = cython.cast(cython.pointer[Cell], PyMem_Realloc(self.cells, room * cython.sizeof(Cell)))
        if cells == cython.NULL:
            raise MemoryError
        self.cells = cells
        sums = cython.cast(
            cython.pointer[cython.longlong],
            PyMem_Realloc(self.sums, 2 * (room + 1) * cython.sizeof(cython.longlong)),
        )
        if sums == cython.NULL:
            raise MemoryError
        self.sums = sums
        self.room = room
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def add_page(self, page: Page) -> cython.int:
        """Append the entries of `page`. O(its bytes)."""
        view: View
        page.show(cython.address(view))
        cells: cython.int = page.cells
        prefix: cython.int = page.prefix_length
        skip: cython.int = 0 if page.level else 2
        index: cython.int
        slot: u64
        at: cython.int
        length: cython.int
        total: cython.longlong = 0
        self.held.append(page)
        self.frames = page.frames()
        self.reserve(cells)
        for index in range(cells):
            slot = get64(view.slots + 8 * index)
            at = cython.cast(cython.int, slot >> 16 & 0xFFFF)
            length = cython.cast(cython.int, slot & 0xFFFF)
            if at + skip + length > page.size:
                raise page.broken()
            total += prefix + length
        whole: Bytes = cython.NULL
        if prefix:
            window = Window(bytearray(total))
            whole = window.at
            self.held.append(window)
        found: Found
        cell: cython.pointer[Cell] = self.cells + self.count
        for index in range(cells):
            slot = get64(view.slots + 8 * index)
            at = cython.cast(cython.int, slot >> 16 & 0xFFFF)
            length = cython.cast(cython.int, slot & 0xFFFF)
            cell.key = view.at + at + skip
            cell.key_length = length
            if skip:
                if not entry_at(cython.address(view), index, cython.address(found)):
                    raise page.broken()
                cell.info = found.info
                cell.payload = found.payload
                cell.payload_length = found.length
            else:
                cell.info = 0
                cell.payload = child_at(cython.address(view), index)
                cell.payload_length = REFERENCE
                if cell.payload == cython.NULL:
                    raise page.broken()
                if not index:
                    cell.key_length = 0
            if prefix and (skip or index):
                memcpy(whole, view.at + HEADER, prefix)
                memcpy(whole + prefix, cell.key, length)
                cell.key = whole
                cell.key_length = prefix + length
                whole += prefix + length
            cell += 1
        self.count += cells
        if self.level:
            self.kids += page.kids
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def insert(self, index: cython.int, key: bytes, info: cython.int, payload: bytes, kid) -> cython.int:
        """Put an entry at `index`."""
        self.reserve(1)
        cell: cython.pointer[Cell] = self.cells + index
        memmove(cell + 1, cell, (self.count - index) * cython.sizeof(Cell))
        self.held.append(key)
        self.held.append(payload)
        cell.key = bytes_at(key)
        cell.key_length = cython.cast(cython.int, PyBytes_GET_SIZE(key))
        cell.payload = bytes_at(payload)
        cell.payload_length = cython.cast(cython.int, PyBytes_GET_SIZE(payload))
        cell.info = info
        self.count += 1
        if self.level:
            self.kids.insert(index, kid)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def name(self, index: cython.int, key: bytes) -> cython.int:
        """Give entry `index` another key."""
        self.held.append(key)
        self.cells[index].key = bytes_at(key)
        self.cells[index].key_length = cython.cast(cython.int, PyBytes_GET_SIZE(key))
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def remove(self, first: cython.int, last: cython.int) -> cython.int:
        """Take entries `first` to `last` - 1 out."""
        memmove(self.cells + first, self.cells + last, (self.count - last) * cython.sizeof(Cell))
        self.count -= last - first
        if self.level:
            del self.kids[first:last]
        return 0

    @cython.cfunc
    def key(self, index: cython.int) -> bytes:
        return as_bytes(self.cells[index].key, self.cells[index].key_length)

    @cython.cfunc
    @cython.exceptval(check=False)
    def measure(self) -> cython.void:
        """Add up lengths, before `bytes_of` is asked."""
        index: cython.int
        keys: cython.pointer[cython.longlong] = self.sums
        payloads: cython.pointer[cython.longlong] = self.sums + self.room + 1
        keys[0] = payloads[0] = 0
        for index in range(self.count):
            keys[index + 1] = keys[index] + self.cells[index].key_length
            payloads[index + 1] = payloads[index] + self.cells[index].payload_length

    @cython.cfunc
    @cython.exceptval(check=False)
    def prefix(self, first: cython.int, last: cython.int) -> cython.int:
        """Length of the prefix that makes the page of these entries smallest."""
        if self.level:
            first += 1
        if last - first < 2:
            return 0
        a: cython.pointer[Cell] = self.cells + first
        b: cython.pointer[Cell] = self.cells + last - 1
        length: cython.int = common(a.key, a.key_length, b.key, b.key_length)
        return length if (last - first) * length > padded(length) else 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def bytes_of(self, first: cython.int, last: cython.int) -> cython.longlong:
        """Bytes of the page that entries `first` to `last` - 1 build."""
        prefix: cython.longlong = self.prefix(first, last)
        skip: cython.int = 1 if self.level else 0
        keys: cython.pointer[cython.longlong] = self.sums
        payloads: cython.pointer[cython.longlong] = self.sums + self.room + 1
        cells: cython.longlong = last - first
        size: cython.longlong = HEADER + padded(cython.cast(cython.int, prefix))
        size += cells * (8 + (REFERENCE if self.level else 2)) + keys[last] - keys[first + skip if cells else first]
        size -= (cells - skip) * prefix
        if not self.level:
            size += payloads[last] - payloads[first]
        return size

    @cython.cfunc
    @cython.exceptval(check=False)
    def fits(self, first: cython.int, last: cython.int) -> cython.bint:
        return self.bytes_of(first, last) <= self.size

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def series_end(self, index: cython.int, lower: bytes | None, upper: bytes | None) -> cython.int:
        """Where to divide a leaf in which the new key ends a series; see `cowdb.page.series_end`."""
        key: cython.pointer[Cell] = self.cells + index
        first: cython.bint = index == 0
        last: cython.bint = index + 1 == self.count
        place: cython.int = 0
        near: cython.int
        if 2 * index + 1 >= self.count:
            near = self.shared(key, upper) if last else common_of(key, key + 1)
            if near >= 0 and self.shared(key, lower) > near:
                place = index if 4 * (self.count - 1 - index) < self.count else index + 1
        else:
            near = self.shared(key, lower) if first else common_of(key - 1, key)
            if near >= 0 and self.shared(key, upper) > near:
                place = index + 1 if 4 * index < self.count else index
        if not place:
            return 0
        whole: cython.longlong = self.before(self.count)
        least: cython.longlong = whole // 8
        while whole - self.before(place) < least and place > 1:
            place -= 1
        while self.before(place) < least and place < self.count - 1:
            place += 1
        return place

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def before(self, index: cython.int) -> cython.longlong:
        """Bytes of the entries of a leaf before that one, without any prefix."""
        return self.sums[index] + self.sums[self.room + 1 + index] + 10 * index

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-2, check=False)
    def shared(self, key: cython.pointer[Cell], bound: bytes | None) -> cython.int:
        """How many bytes a key begins with as `bound` does; -1 if there is none."""
        if bound is None:
            return -1
        return common(key.key, key.key_length, bytes_at(bound), cython.cast(cython.int, PyBytes_GET_SIZE(bound)))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def middle(self) -> cython.int:
        """Where to divide so that both parts fit, as evenly as can be; see `cowdb.page.middle`."""
        least: cython.int = 2 if self.level else 1
        keys: cython.pointer[cython.longlong] = self.sums
        payloads: cython.pointer[cython.longlong] = self.sums + self.room + 1
        limit: cython.int = self.count
        fixed: cython.longlong = 30 if self.level else 10
        # What lies before entry i, without any prefix: a sum that the lengths of keys and payloads give.
        weight: cython.longlong = 0 if self.level else 1
        whole: cython.longlong = keys[limit] + weight * payloads[limit] + fixed * limit
        place: cython.int = 0
        total: cython.longlong = 0
        before: cython.longlong = 0
        while 2 * total < whole:
            place += 1
            before = total
            total = keys[place] + weight * payloads[place] + fixed * place
        if 2 * total - whole > whole - 2 * before:
            place -= 1
        step: cython.int
        candidate: cython.int
        side: cython.int
        for step in range(limit):
            for side in range(2):
                candidate = place - step if side else place + step
                if least <= candidate <= limit - least and self.fits(0, candidate) and self.fits(candidate, limit):
                    return candidate
        raise CorruptionError(-1, "its cells overlap: they fit into no two pages")

    @cython.cfunc
    def build(self, first: cython.int, last: cython.int) -> Page:
        """A dirty page of entries `first` to `last` - 1. O(its bytes)."""
        prefix: cython.int = self.prefix(first, last)
        cells: cython.int = last - first
        level: cython.int = self.level
        if self.frames is None or self.frames.size != cython.cast(cython.size_t, self.size):
            self.frames = Frames(self.size)
        window: Window = Window.__new__(Window, Frame.__new__(Frame, self.frames))
        page: Page = Page.__new__(Page)
        page.window = window
        page.base = window.at
        page.size = self.size
        page.prefix_length = prefix
        page.first = HEADER + padded(prefix)
        page.cells = cells
        page.level = level
        index: cython.int
        cell: cython.pointer[Cell]
        total: cython.longlong = 0
        lead: cython.int = 0 if level else 2
        for index in range(first, last):
            cell = self.cells + index
            total += lead + cell.payload_length
            if not level or index > first:
                if cell.key_length < prefix:
                    # The prefix is that of the first and the last key, and keys of a forged page do not rise (I7, I10).
                    raise CorruptionError(-1, "its keys do not rise")
                total += cell.key_length - prefix
        if page.first + 8 * cells + total > self.size:
            # Entries are measured before: only cells that overlap, of a forged page, can turn out larger (I10).
            raise CorruptionError(-1, "its cells overlap")
        offset: cython.int = self.size - cython.cast(cython.int, total)
        page.heap = offset
        slots: Bytes = page.base + page.first
        memset(page.base, 0, page.first)  # a frame is not blank
        memset(slots + 8 * cells, 0, offset - page.first - 8 * cells)
        if prefix:
            cell = self.cells + first + (1 if level else 0)
            memcpy(page.base + HEADER, cell.key, prefix)
        length: cython.int
        key: Bytes
        at: Bytes
        count: cython.longlong = cells
        for index in range(first, last):
            cell = self.cells + index
            length = cell.key_length - prefix
            key = cell.key + prefix
            if level and index == first:
                length = 0
            put64(
                slots,
                head_of(key, length) << 32 | cython.cast(u64, offset) << 16 | cython.cast(u64, length),
            )
            slots += 8
            at = page.base + offset
            if lead:
                put16(at, cell.info)
            memcpy(at + lead, key, length)
            memcpy(at + lead + length, cell.payload, cell.payload_length)
            offset += lead + length + cell.payload_length
        if level:
            page.kids = self.kids[first:last]
            count = 0
            for index in range(cells):
                count += page.below(index)
        page.count = count
        return page


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def common_of(a: cython.pointer[Cell], b: cython.pointer[Cell]) -> cython.int:
    """How many bytes two keys begin with alike."""
    return common(a.key, a.key_length, b.key, b.key_length)
