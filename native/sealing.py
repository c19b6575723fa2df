"""Whole ranges, and the end of a transaction: the rest of the twin of `cowdb.writer`."""

from __future__ import annotations

from native.cells import *
from native.memory import *
from native.page import *
from native.tree import *
from native.writer import *


@cython.cclass
class Writer(Editor):
    """A tree that is being changed by one write transaction; see `cowdb.writer.Writer`."""

    # ------------------------------------------------------------ delete a range

    def delete_range(self, start: bytes | None, stop: bytes | None):
        """Remove the entries with start <= key < stop (None: no bound); how many there were.

        Whole subtrees are freed from the references above them; leaves inside
        the range are read only where the tree has overflow values.
        O(log n + pages freed).
        """
        if start is not None and stop is not None and start >= stop:
            return 0
        self.opened()
        changes: Changes = self.changes
        busy: cython.bint = changes.busy
        self.refuse_if_busy()
        try:
            changes.busy = True
            return self.take_range(start, stop)
        finally:
            changes.busy = busy

    @cython.cfunc
    def take_range(self, start: bytes | None, stop: bytes | None):
        changes: Changes = self.changes
        before: cython.longlong = len(self)
        root: Page = self.own_root()
        if root is None:
            return 0
        self._tail = None
        changes.torn = True
        self.changes_made += 1
        changes.operations += 1
        page: Page = self.cut(root, start, stop)
        self._page = page
        if page is None:
            self.forget_root()
        else:
            for key in (start, stop):
                if self._page is not None:
                    self.mend(key or b"")
        changes.torn = False
        return before - len(self)

    @cython.cfunc
    def cut(self, page: Page, start: bytes | None, stop: bytes | None) -> Page:
        """What is left of dirty `page` without the range; None if nothing is."""
        first: cython.int
        last: cython.int
        index: cython.int
        cells: Cells = Cells(self.page_size, page.level)
        if not page.level:
            first = page.search(bytes_at(start), len(start), 0, 2, 0) if start is not None else 0
            last = page.search(bytes_at(stop), len(stop), 0, 2, 0) if stop is not None else page.cells
            if self.overflow_pages:
                for index in range(first, last):
                    self.release_entry(page, index)
            cells.add_page(page)
            if last > first:
                cells.remove(first, last)
            if cells.count:
                return cells.build(0, cells.count)
            self.leaf_pages -= 1
            self.changes.less(self.page_size)
            return None
        first = page.search(bytes_at(start), len(start), 1, 0, 1) - 1 if start is not None else 0
        last = page.search(bytes_at(stop), len(stop), 1, 0, 1) - 1 if stop is not None else page.cells - 1
        separators: list = page.keys(0, page.cells, self.page_size)
        kids: list = list(page.kids)
        ref: Ref
        rest: Page
        low: bytes
        high: bytes
        cells.add_page(page)
        cells.remove(first, page.cells)
        for index in range(first, last + 1):
            low = start if index == first else None
            high = stop if index == last else None
            if low is None and high is None:
                if kids[index] is not None:
                    self.free_dirty(kids[index])
                else:
                    page.child_ref(index, cython.address(ref))
                    self.free_clean(cython.address(ref), page.level - 1)
                continue
            rest = self.cut(self.own(page, index), low, high)
            if rest is not None:
                cells.insert(cells.count, separators[index], 0, BLANK, rest)
        for index in range(last + 1, page.cells):
            page.child_ref(index, cython.address(ref))
            cells.insert(cells.count, separators[index], 0, packed(cython.address(ref)), kids[index])
        if cells.count:
            return cells.build(0, cells.count)
        self.branch_pages -= 1
        self.changes.less(self.page_size)
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def mend(self, key: bytes) -> cython.int:
        """Bring the pages on the way to `key`, which a cut may have left small, back into balance."""
        way: Way
        page: Page
        leaf: Page
        place: cython.int
        depth: cython.int
        for _ in range(4 * self.depth + 4):
            if self._page is None:
                return 0
            leaf = self.own_way(key, cython.address(way))
            pages: list = pages_of(cython.address(way), leaf)
            # From the top: a branch that leads nowhere else gets a neighbour before its child needs one.
            depth = -1
            for place in range(way.depth + 1):
                page = pages[place]
                if page.level and page.cells < 2:
                    depth = place
                    break
            else:
                for place in range(way.depth, -1, -1):
                    if self.is_small(pages[place]):
                        depth = place
                        break
            if depth < 0:
                return 0
            self.rebalance(pairs_of(cython.address(way))[:depth], pages[depth])
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def free_dirty(self, page: Page) -> cython.int:
        """Forget a dirty subtree; what is clean below it becomes free."""
        self.changes.less(self.page_size)
        if not page.level:
            self.leaf_pages -= 1
            if self.overflow_pages:
                for _, payload in page.overflow_entries():
                    self.release(payload)
            return 0
        self.branch_pages -= 1
        index: cython.int
        ref: Ref
        for index in range(page.cells):
            if page.kids[index] is not None:
                self.free_dirty(page.kids[index])
            else:
                page.child_ref(index, cython.address(ref))
                self.free_clean(cython.address(ref), page.level - 1)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def free_clean(self, ref: cython.pointer[Ref], level: cython.int) -> cython.int:
        """Free a clean subtree.  Its leaves are looked at only for overflow values."""
        self.free_run(ref.number, 1, ref.birth)
        if self.leaf_pages <= 0 or self.branch_pages < 0:
            # Pages that refer to one child many times could make this endless.
            raise CorruptionError(ref.number, "a tree has more pages than its descriptor counts")
        page: Page
        if not level:
            self.leaf_pages -= 1
            if self.overflow_pages:
                page = self.clean(ref, 0)
                for _, payload in page.overflow_entries():
                    self.release(payload)
            return 0
        self.branch_pages -= 1
        page = self.clean(ref, level)
        index: cython.int
        kid: Ref
        for index in range(page.cells):
            page.child_ref(index, cython.address(kid))
            self.free_clean(cython.address(kid), level - 1)
        return 0

    # ------------------------------------------------------------ seal

    def patch(self, key: bytes, value: bytes) -> None:
        """Overwrite the value of `key`, in a dirty leaf, with one of the same length."""
        self.opened()
        if self.own_root() is None:
            raise KeyNotFoundError(key)
        way: Way
        leaf: Page = self.own_way(key, cython.address(way))
        leaf.set_payload(leaf.search(bytes_at(key), len(key), 0, 2, 0), value)

    def dirty_pages(self):
        """How many single pages the seal will write, and the lengths in pages of its overflow runs."""
        pages: cython.Py_ssize_t = self.gather_all()
        runs: list = []
        for value in self.large.values():
            runs.append(fmt.overflow_pages(len(value), self.page_size))
        return pages, runs

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def gather_all(self) -> cython.Py_ssize_t:
        """Note the dirty pages, for the seal; how many there are."""
        if not PyList_GET_SIZE(self._order) or self._gathered != self.changes_made + self.changes.copied:
            self._order = []
            if self._page is not None:
                self.gather(self._page)
            self._gathered = self.changes_made + self.changes.copied
        return PyList_GET_SIZE(self._order)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def gather(self, page: Page) -> cython.int:
        """Note the dirty pages from `page` down, children before parents."""
        index: cython.Py_ssize_t
        if page.level:
            index = next_filled(page.kids, 0)
            while index >= 0:
                self.gather(page.kids[index])
                index = next_filled(page.kids, index + 1)
        self._order.append(page)
        return 0

    def seal(self, numbers, place_run, sealed):
        """Give every dirty page its number, birth and checksum, children first, and add it to `sealed`.

        `dirty_pages` was called before.  Afterwards the tree is clean: its root
        is a reference again (I3).  The first numbers go to branches, the root's
        first of all.
        """
        if not self.changes_made:
            return self._sealed
        pages: cython.Py_ssize_t = PyList_GET_SIZE(self._order)
        index: cython.Py_ssize_t
        room: Scratch = Scratch(pages * cython.sizeof(u64))
        given = cython.cast(cython.pointer[u64], room.at)
        for index in range(pages):
            given[index] = next(numbers)
        self.seal_as(given, place_run, sealed)
        return self.described()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def seal_as(self, numbers: cython.pointer[u64], place_run, sealed) -> cython.int:
        """Seal; `numbers` are as many as there are dirty pages."""
        self.changes_made += 1  # an iteration may hold references to values, which are written now
        starts: list = sealed.numbers
        parts: list = sealed.parts
        order: list = self._order
        self._order = []
        page: Page
        kid: Page
        index: cython.Py_ssize_t
        branches: cython.Py_ssize_t = 0
        for page in order:
            if page.level:
                branches += 1
        leaves: cython.Py_ssize_t = branches
        number: u64
        birth: u64 = self.changes.birth
        for page in order:
            if page.level:
                index = next_filled(page.kids, 0)
                while index >= 0:
                    kid = page.kids[index]
                    page.refer(index, cython.address(kid.sealed))
                    index = next_filled(page.kids, index + 1)
                branches -= 1
                number = numbers[branches]
            else:
                if self.large:
                    self.seal_values(page, place_run, sealed)
                number = numbers[leaves]
                leaves += 1
            page.close(number, birth)
            self.root = page.sealed
            starts.append(number)
            parts.append(page.window.data)
        self._page = None
        self._tail = None
        self.large.clear()
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def seal_values(self, leaf: Page, place_run, sealed) -> cython.int:
        """Lay out the values of a dirty leaf that are not written yet, and put references to them."""
        ref: Ref
        for index, raw in leaf.overflow_entries():
            read_ref(bytes_at(raw), cython.address(ref))
            if not ref.number:
                leaf.set_payload(index, self.seal_value(self.waiting(ref.checksum), place_run, sealed))
        return 0

    @cython.cfunc
    def seal_value(self, value: bytes, place_run, sealed) -> bytes:
        """Lay a value out as an overflow run; the packed reference to it."""
        pages: cython.longlong = fmt.overflow_pages(len(value), self.page_size)
        number: u64 = place_run(pages)
        header = bytearray(fmt.PAGE_HEADER.struct.pack(0, OVERFLOW_KIND, 0, 0, number, self.changes.birth, 0, 0, 0, 0))
        rest = bytes(pages * self.page_size - HEADER - len(value))
        checksum: u32 = crc32c(rest, crc32c(value, crc32c(memoryview(header)[4:])))
        header[:4] = int(checksum).to_bytes(4, "little")
        sealed.add(number, (header, value, rest))
        return fmt.Reference(number, self.changes.birth, len(value), checksum).pack()


@cython.cfunc
def packed(ref: cython.pointer[Ref]) -> bytes:
    """The 22 bytes of a reference."""
    raw: bytes = PyBytes_FromStringAndSize(cython.NULL, 22)
    write_ref(bytes_at(raw), ref)
    return raw
