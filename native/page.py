"""One slotted page as an object: the twin of `cowdb.page`.

A clean page looks into the mapping, a dirty one owns a `Frame`.  Lookups do
not make these objects for clean pages; paths and copies do.  What a dirty page's
header will say lies in the fields here until the page is sealed.
"""

from __future__ import annotations

from native.frames import *
from native.memory import *


@cython.final
@cython.no_gc
@cython.cclass
class Page:
    """A branch or leaf; see `cowdb.page.Page`, whose names these are.

    The garbage collector has nothing to do here: a page refers to its bytes and to the pages below it, never to itself.
    """

    window = cython.declare(Window)  # holds the bytes
    base = cython.declare(Bytes)  # where the page begins
    size = cython.declare(cython.int)  # of the page, in bytes
    first = cython.declare(cython.int)  # offset of slot 0
    prefix_length = cython.declare(cython.int)
    cells = cython.declare(cython.int, visibility="readonly")
    level = cython.declare(cython.int, visibility="readonly")
    heap = cython.declare(cython.int, visibility="readonly")
    dead = cython.declare(cython.longlong, visibility="public")
    count = cython.declare(cython.longlong, visibility="public")
    kids = cython.declare(list, visibility="public")
    sealed = cython.declare(Ref)

    def __init__(self, data, words, at: cython.Py_ssize_t):
        """A clean page at byte offset `at` of `data`. O(1)."""
        window = Window(data)
        if not 0 <= at <= window.length - HEADER:
            raise ValueError(f"there is no page at {at} of {window.length} bytes")
        size: cython.Py_ssize_t = window.length - at
        view: View
        if not open_view(cython.address(view), window.at + at, 32768 if size > 32768 else size):
            raise broken(cython.address(view))
        self.look(window, cython.address(view))

    @cython.cfunc
    @cython.exceptval(check=False)
    def look(self, window: Window, view: cython.pointer[View]) -> cython.void:
        """Be the clean page that `view` shows."""
        self.window = window
        self.base = view.at
        self.size = view.size
        self.first = cython.cast(cython.int, view.slots - view.at)
        self.prefix_length = view.prefix
        self.cells = view.cells
        self.level = view.level
        self.heap = cython.cast(cython.int, get16(view.at + 26))
        self.dead = get16(view.at + 28)
        self.count = 0
        self.kids = None

    # ------------------------------------------------------------ what it shows

    @property
    def data(self):
        """What the page's bytes lie in: memory of its own, or the mapping."""
        return memoryview(self.window.data) if type(self.window.data) is Frame else self.window.data

    @property
    def words(self):
        """The same as 64-bit integers."""
        return memoryview(self.window.data).cast("Q")

    @property
    def at(self):
        """Byte offset of the page within `data`."""
        return self.base - self.window.at

    @property
    def start(self):
        """Index within `words` of slot 0."""
        return (self.base - self.window.at + self.first) >> 3

    @property
    def prefix(self):
        """What all keys of the page begin with."""
        return as_bytes(self.base + HEADER, self.prefix_length)

    @property
    def bits(self):
        """The packed reference to the page, once it is sealed."""
        return pack_ref(cython.address(self.sealed))

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def show(self, view: cython.pointer[View]) -> cython.void:
        view.at = self.base
        view.slots = self.base + self.first
        view.size = self.size
        view.cells = self.cells
        view.prefix = self.prefix_length
        view.level = self.level

    @cython.cfunc
    def frames(self) -> Frames:
        """Where this dirty page has its memory from."""
        return cython.cast(Frame, self.window.data).frames if type(self.window.data) is Frame else Frames(self.size)

    @cython.cfunc
    def broken(self):
        view: View
        self.show(cython.address(view))
        return broken(cython.address(view))

    # ------------------------------------------------------------ making

    @staticmethod
    def build_leaf(entries: list, size: cython.int):
        """A dirty leaf of `size` bytes that holds `entries`, which must fit. O(entries)."""
        cells = Cells(size, 0, Frames(size))
        cells.reserve(len(entries))
        for key, info, payload in entries:
            cells.insert(cells.count, key, info, payload, None)
        return cells.build(0, cells.count)

    @staticmethod
    def build_branch(entries: list, size: cython.int, level: cython.int):
        """A dirty branch of `size` bytes; the key of the first entry is not stored. O(entries)."""
        cells = Cells(size, level, Frames(size))
        cells.reserve(len(entries))
        for key, reference, kid in entries:
            cells.insert(cells.count, key, 0, reference, kid)
        return cells.build(0, cells.count)

    def copy(self, size: cython.int, count: cython.longlong) -> Page:
        """A dirty copy of this clean page, with `count` entries below it. O(size)."""
        view: View
        self.show(cython.address(view))
        view.size = size
        if size > self.size:
            raise self.broken()
        return copied(cython.address(view), count, Frames(size))

    # ------------------------------------------------------------ looking

    def lower_bound(self, key: bytes):
        """In a leaf: index of the first entry whose key is not less than `key`. O(log cells)."""
        return self.search(bytes_at(key), len(key), 0, 2, 0)

    def child_index(self, key: bytes):
        """In a branch: index of the child whose range holds `key`. O(log cells)."""
        return self.search(bytes_at(key), len(key), 1, 0, 1) - 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def search(
        self, key: Bytes, length: cython.Py_ssize_t, low: cython.int, skip: cython.int, after: cython.int
    ) -> cython.int:
        view: View
        self.show(cython.address(view))
        found: cython.int = boundary(cython.address(view), key, length, low, skip, after)
        if found < 0:
            raise broken(cython.address(view))
        return found

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def has(self, index: cython.int, key: bytes) -> cython.int:
        view: View
        self.show(cython.address(view))
        found: cython.int = holds(cython.address(view), index, bytes_at(key), PyBytes_GET_SIZE(key))
        if found < 0:
            raise broken(cython.address(view))
        return found

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def check_index(self, index: cython.Py_ssize_t) -> cython.int:
        if not 0 <= index < self.cells:
            raise IndexError(f"cell {index} of a page of {self.cells}")
        return 0

    def key(self, index: cython.Py_ssize_t):
        """The whole key of cell `index` (of a branch: its separator, empty for cell 0)."""
        self.check_index(index)
        if self.level and not index:
            return b""
        view: View
        self.show(cython.address(view))
        return key_at(cython.address(view), index, 0 if self.level else 2)

    def has_key(self, index: cython.int, key: bytes):
        """True if leaf entry `index` exists and has this key, which `lower_bound` led to."""
        return self.has(index, key) > 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def entry(self, index: cython.int, found: cython.pointer[Found]) -> cython.int:
        view: View
        self.show(cython.address(view))
        if not entry_at(cython.address(view), index, found):
            raise broken(cython.address(view))
        return 0

    def payload(self, index: cython.Py_ssize_t):
        """Kind and length, and payload, of leaf entry `index`."""
        found: Found
        self.check_index(index)
        self.entry(index, cython.address(found))
        return found.info, as_bytes(found.payload, found.length)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def child_ref(self, index: cython.int, ref: cython.pointer[Ref]) -> cython.void:
        """The reference of child `index`; one that leads nowhere if its cell lies outside of the page."""
        view: View
        self.show(cython.address(view))
        at: Bytes = child_at(cython.address(view), index)
        if at == cython.NULL:
            ref.number = ref.birth = ref.count = ref.checksum = 0
        else:
            read_ref(at, ref)

    def reference(self, index: cython.Py_ssize_t):
        """The packed reference of child `index`, as one integer."""
        ref: Ref
        self.check_index(index)
        self.child_ref(index, cython.address(ref))
        return pack_ref(cython.address(ref))

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def below(self, index: cython.int) -> cython.longlong:
        """Entries below child `index`."""
        kid: Page
        if self.kids is not None:
            kid = self.kids[index]
            if kid is not None:
                return kid.count
        ref: Ref
        self.child_ref(index, cython.address(ref))
        return ref.count

    def child_count(self, index: cython.Py_ssize_t):
        """Entries below child `index`: from the dirty child, or from the reference to the clean one."""
        self.check_index(index)
        return self.below(index)

    def count_before(self, index: cython.Py_ssize_t):
        """Entries below the children before child `index`. O(index)."""
        if index:
            self.check_index(index - 1)
        return self.sum_before(index)

    @cython.cfunc
    def sum_before(self, index: cython.int) -> cython.longlong:
        total: cython.longlong = 0
        child: cython.int
        for child in range(index):
            total += self.below(child)
        return total

    def child_of_rank(self, rank: cython.longlong):
        """Index of the child that holds entry number `rank` below this branch, and its number there. O(cells)."""
        index: cython.int
        for index in range(self.cells):
            count: cython.longlong = self.below(index)
            if rank < count:
                return index, rank
            rank -= count
        raise CorruptionError(-1, "a branch counts more entries than its children")

    # ------------------------------------------------------------ many at once

    def items(self, first: cython.Py_ssize_t, last: cython.Py_ssize_t, size, fetch) -> list:
        """Entries `first` to `last` - 1 of a leaf; `fetch` gets the value behind an overflow reference."""
        taken: list = []
        for index in range(first, last):
            info, payload = self.payload(index)
            taken.append((self.key(index), fetch(payload) if info > LENGTH_MASK else payload))
        return taken

    def keys(self, first: cython.Py_ssize_t, last: cython.Py_ssize_t, size) -> list:
        """Keys `first` to `last` - 1 of a leaf."""
        found: list = []
        index: cython.Py_ssize_t
        for index in range(first, last):
            found.append(self.key(index))
        return found

    def leaf_entries(self) -> list:
        """All entries of a leaf, taken apart. O(cells)."""
        found: list = []
        index: cython.Py_ssize_t
        for index in range(self.cells):
            info, payload = self.payload(index)
            found.append((self.key(index), info, payload))
        return found

    def branch_entries(self) -> list:
        """All entries of a dirty branch, taken apart. O(cells)."""
        found: list = []
        index: cython.Py_ssize_t
        for index in range(self.cells):
            found.append((self.key(index), self.reference(index).to_bytes(22, "little"), self.kids[index]))
        return found

    # ------------------------------------------------------------ changing a dirty page

    def used(self):
        """Bytes that header, prefix, slots and live cells take."""
        return self.taken()

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def taken(self) -> cython.longlong:
        return self.first + 8 * self.cells + self.size - self.heap - self.dead

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def own(self) -> cython.int:
        """Refuse to change what is not ours: every dirty page has a frame."""
        if type(self.window.data) is not Frame:
            raise TypeError("a clean page is never changed")
        return 0

    def insert(self, index: cython.Py_ssize_t, key: bytes, info: cython.int, payload: bytes):
        """Put an entry at `index` of a leaf; False, and nothing changed, if it needs a rebuilt page."""
        self.own()
        if not 0 <= index <= self.cells:
            raise IndexError(index)
        return bool(self.add(index, bytes_at(key), len(key), info, bytes_at(payload), len(payload)))

    def insert_child(self, index: cython.Py_ssize_t, separator: bytes, kid: Page):
        """Put a dirty child at `index` > 0 of a branch; False, and nothing changed, if it needs a rebuilt page."""
        self.own()
        if not 0 < index <= self.cells:
            raise IndexError(index)
        if not self.add(index, bytes_at(separator), len(separator), -1, cython.NULL, REFERENCE):
            return False
        self.kids.insert(index, kid)
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def add(
        self,
        index: cython.int,
        key: Bytes,
        length: cython.Py_ssize_t,
        info: cython.int,
        payload: Bytes,
        size: cython.int,
    ) -> cython.bint:
        """Put a cell at `index`; `info` is -1 in a branch, and a payload of NULL is blank."""
        prefix: cython.int = self.prefix_length
        if prefix:
            if length < prefix or memcmp(key, self.base + HEADER, prefix):
                return False
            key += prefix
            length -= prefix
        lead: cython.int = 2 if info >= 0 else 0
        heap: cython.int = self.heap - lead - cython.cast(cython.int, length) - size
        end: cython.int = self.first + 8 * self.cells
        if heap < end + 8:
            return False
        at: Bytes = self.base + heap
        if lead:
            put16(at, info)
        memcpy(at + lead, key, length)
        at += lead + length
        if payload == cython.NULL:
            memset(at, 0, size)
        else:
            memcpy(at, payload, size)
        place: Bytes = self.base + self.first + 8 * index
        memmove(place + 8, place, self.base + end - place)
        put64(place, head_of(key, length) << 32 | cython.cast(u64, heap) << 16 | cython.cast(u64, length))
        self.heap = heap
        self.cells += 1
        return True

    def replace(self, index: cython.Py_ssize_t, info: cython.int, payload: bytes):
        """Give leaf entry `index` another payload of the same size; False if the size differs."""
        self.own()
        self.check_index(index)
        if len(payload) != info & LENGTH_MASK:
            raise ValueError("the payload is not as long as it says")
        return self.overwrite(index, info, bytes_at(payload)) > 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def overwrite(self, index: cython.int, info: cython.int, payload: Bytes) -> cython.int:
        found: Found
        self.entry(index, cython.address(found))
        if (found.info ^ info) & LENGTH_MASK:
            return 0
        slot: u64 = get64(self.base + self.first + 8 * index)
        put16(self.base + (slot >> 16 & 0xFFFF), info)
        memcpy(found.payload, payload, found.length)
        return 1

    def remove(self, index: cython.Py_ssize_t) -> None:
        """Take cell `index` out; its bytes become a zeroed hole (of a branch: never cell 0)."""
        self.own()
        self.check_index(index)
        self.take(index)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take(self, index: cython.int) -> cython.int:
        place: Bytes = self.base + self.first + 8 * index
        end: Bytes = self.base + self.first + 8 * self.cells
        slot: u64 = get64(place)
        at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF)
        size: cython.int = cython.cast(cython.int, slot & 0xFFFF)
        found: Found
        if self.level:
            assert self.kids is not None
            assert index
            size += REFERENCE
        else:
            self.entry(index, cython.address(found))
            size += 2 + found.length
        if at + size > self.size or at < self.first + 8 * self.cells:
            raise self.broken()
        if self.level:
            del self.kids[index]
        memset(self.base + at, 0, size)
        memmove(place, place + 8, end - place - 8)
        memset(end - 8, 0, 8)
        self.dead += size
        self.cells -= 1
        return 0

    def dirty_kids(self) -> list:
        """Index and page of each dirty child of a dirty branch, in order. O(cells)."""
        found: list = []
        index: cython.Py_ssize_t = next_filled(self.kids, 0)
        while index >= 0:
            found.append((index, self.kids[index]))
            index = next_filled(self.kids, index + 1)
        return found

    def set_reference(self, index: cython.Py_ssize_t, bits) -> None:
        """Write the reference of child `index`, whose page was sealed."""
        ref: Ref
        self.own()
        self.check_index(index)
        unpack_ref(bits, cython.address(ref))
        self.refer(index, cython.address(ref))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def refer(self, index: cython.int, ref: cython.pointer[Ref]) -> cython.int:
        view: View
        self.show(cython.address(view))
        at: Bytes = child_at(cython.address(view), index)
        if at == cython.NULL or at < self.base + self.first + 8 * self.cells:
            raise broken(cython.address(view))
        write_ref(at, ref)
        return 0

    def set_payload(self, index: cython.Py_ssize_t, payload: bytes) -> None:
        """Overwrite the payload of leaf entry `index` with one of the same length."""
        self.own()
        self.check_index(index)
        slot: u64 = get64(self.base + self.first + 8 * index)
        at: cython.Py_ssize_t = (slot >> 16 & 0xFFFF) + 2 + (slot & 0xFFFF)
        if at + len(payload) > self.size or at < self.first + 8 * self.cells:
            raise self.broken()
        memcpy(self.base + at, bytes_at(payload), len(payload))

    def overflow_entries(self) -> list:
        """Index and packed reference of every leaf entry whose value lies in an overflow run. O(cells)."""
        taken: list = []
        found: Found
        index: cython.int
        for index in range(self.cells):
            self.entry(index, cython.address(found))
            if found.info >> 14 == OVERFLOW:
                if found.length < REFERENCE:
                    raise self.broken()
                taken.append((index, as_bytes(found.payload, REFERENCE)))
        return taken

    def seal(self, number: u64, birth: u64):
        """Write number, birth and checksum into the header; the reference to the page, as one integer."""
        self.own()
        self.close(number, birth)
        return pack_ref(cython.address(self.sealed))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def close(self, number: u64, birth: u64) -> cython.int:
        if not 0 <= self.count <= cython.cast(cython.longlong, MAX_U48) or not 0 <= self.dead <= self.size:
            raise self.broken()
        if number > MAX_U48 or birth > MAX_U48:
            raise OverflowError("a page number or a transaction id is too large for its field")
        at: Bytes = self.base
        at[4] = BRANCH_KIND if self.level else LEAF_KIND
        at[5] = self.level
        put16(at + 6, self.cells)
        put64(at + 8, number)
        put64(at + 16, birth)
        put16(at + 24, self.prefix_length)
        put16(at + 26, self.heap)
        put16(at + 28, self.dead)
        put16(at + 30, 0)
        checksum: u32 = crc_of(at + 4, self.size - 4, 0, 0)
        put32(at, checksum)
        self.sealed.number = number
        self.sealed.birth = birth
        self.sealed.count = self.count
        self.sealed.checksum = checksum
        return 0


@cython.cfunc
def clean_page(window: Window, view: cython.pointer[View]) -> Page:
    """The clean page that `view` shows; `window` holds its bytes."""
    page: Page = Page.__new__(Page)
    page.look(window, view)
    return page


@cython.cfunc
def copied(view: cython.pointer[View], count: cython.longlong, frames: Frames) -> Page:
    """A dirty copy of a page, with `count` entries below it."""
    if cython.cast(cython.size_t, view.size) != frames.size:
        raise ValueError("a page of another size")
    window: Window = Window.__new__(Window, Frame.__new__(Frame, frames))
    memcpy(window.at, view.at, view.size)
    mine: View
    if (
        not open_view(cython.address(mine), window.at, view.size)
        or mine.cells != view.cells
        or mine.level != view.level
    ):
        raise broken(view)  # it has changed under our eyes
    page: Page = clean_page(window, cython.address(mine))
    page.count = count
    if page.level:
        page.kids = [None] * page.cells
    return page
