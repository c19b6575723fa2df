"""Changing a tree by copy-on-write: the twin of `cowdb.writer`.

A put or a delete goes down the dirty path once and edits the leaf in place.  What
is rare, dividing and merging, is done on `Cells`; what it decides is what the plain
kernel decides, so that the files are equal to the byte.

The way down borrows its pages from the tree.  Whatever may replace a page of it
gets a list of pairs instead, which holds them.
"""

from __future__ import annotations

from native.cells import *
from cowdb.writer import BUSY, INTERRUPTED
from native.changes import *
from native.memory import *
from native.page import *
from native.tree import *

BLANK = bytes(22)
REFERENCE_OF = cython.declare(object, fmt.Reference)
DESCRIPTOR_OF = cython.declare(object, fmt.Descriptor)


@cython.cclass
class Editor(Reader):
    """A tree that entries are put into and deleted from; `Writer` adds what takes whole ranges, and the seal."""

    changes = cython.declare(Changes, visibility="readonly")
    inner = cython.declare(cython.bint, visibility="public")  # the catalog or the free tree
    branch_pages = cython.declare(cython.longlong, visibility="public")
    leaf_pages = cython.declare(cython.longlong, visibility="public")
    overflow_pages = cython.declare(cython.longlong, visibility="public")
    page_size = cython.declare(cython.int, visibility="readonly")
    key_limit = cython.declare(cython.int, visibility="readonly")
    inline_limit = cython.declare(cython.int, visibility="readonly")
    large = cython.declare(dict, visibility="readonly")  # overflow values that are not written yet, by their number
    pending = cython.declare(cython.longlong, visibility="readonly")
    _slack = cython.declare(cython.int)
    _sealed = cython.declare(object)
    _order = cython.declare(list)  # the dirty pages, children first, when ...
    _gathered = cython.declare(cython.longlong)  # ... so much had been changed and copied
    _tail = cython.declare(list)  # the dirty path to the last leaf, while it is known
    _greatest = cython.declare(bytes)  # the last key, while _tail is known

    def __init__(self, space, descriptor, changes: Changes):
        self.change(space, descriptor, changes)

    @cython.final
    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def change(self, space, descriptor, changes: Changes) -> cython.int:
        """Change the tree that `descriptor` describes."""
        fields: tuple = tuple_of(descriptor, 5)
        self.look_at(space, fields)
        known: Space = self.opened()
        self.changes = changes
        self._sealed = descriptor
        self._order = []
        self.branch_pages = fields[2]
        self.leaf_pages = fields[3]
        self.overflow_pages = fields[4]
        self.page_size = known.page_size
        self.key_limit = known.key_limit
        self.inline_limit = known.inline_limit
        self._slack = known.page_size - known.page_size // 16
        self.large = {}
        self._greatest = b""
        return 0

    @property
    def changed(self):
        """True if there is anything to seal or the root has moved."""
        return self.changes_made > 0

    def descriptor(self):
        """The tree as sealed so far."""
        return self.described()

    @cython.cfunc
    def described(self):
        if self.branch_pages < 0 or self.leaf_pages < 0 or self.overflow_pages < 0:
            raise CorruptionError(-1, "a tree's descriptor counts fewer pages than the tree has")
        # As their classes make them, but for a call of Python.
        root = named_tuple(REFERENCE_OF, (self.root.number, self.root.birth, self.root.count, self.root.checksum))
        pages = (root, self.depth, self.branch_pages, self.leaf_pages, self.overflow_pages)
        return named_tuple(DESCRIPTOR_OF, pages)

    @cython.cfunc
    def fetched(self, raw: Bytes):
        """The value behind an overflow reference; one that is not written yet is in memory."""
        ref: Ref
        read_ref(raw, cython.address(ref))
        if ref.number:
            return Reader.fetched(self, raw)
        return self.waiting(ref.checksum)

    @cython.cfunc
    def waiting(self, number):
        """An overflow value that is not written yet. Only a forged page can name one that there is not."""
        value = self.large.get(number)
        if value is None:
            raise CorruptionError(-1, "an overflow value without a page")
        return value

    # ------------------------------------------------------------ copies

    @cython.cfunc
    def own(self, parent: Page, index: cython.int) -> Page:
        """Make child `index` of a dirty branch dirty."""
        kid: Page = parent.kids[index]
        if kid is None:
            ref: Ref
            parent.child_ref(index, cython.address(ref))
            kid = self.copy_of(cython.address(ref), parent.level - 1)
            parent.kids[index] = kid
        return kid

    @cython.cfunc
    def copy_of(self, ref: cython.pointer[Ref], level: cython.int) -> Page:
        view: View
        space: Space = self.opened()
        space.reach(ref, level, cython.address(view))
        page: Page = copied(cython.address(view), ref.count if level else view.cells, space.frames)
        changes: Changes = self.changes
        changes.freed.append((ref.number, 1, ref.birth))
        changes.copied += 1
        changes.dirty += self.page_size
        return page

    @cython.cfunc
    def own_root(self) -> Page:
        if self._page is None and self.depth:
            self._page = self.copy_of(cython.address(self.root), self.depth - 1)
            self.changes_made += 1  # whatever fails from here on, the root moves, for its old page is free (I1)
        return self._page

    @cython.cfunc
    def own_way(self, key: bytes, way: cython.pointer[Way]) -> Page:
        """The dirty leaf of `key`, and the branches that lead to it, each with its index. The tree is not empty."""
        page: Page = self.own_root()
        index: cython.int
        depth: cython.int = 0
        while page.level:
            index = page.search(bytes_at(key), PyBytes_GET_SIZE(key), 1, 0, 1) - 1
            way.pages[depth] = cython.cast(cython.p_void, page)
            way.at[depth] = index
            depth += 1
            if page.kids[index] is None:
                page = self.own(page, index)
            else:
                page = cython.cast(Page, page.kids[index])
        way.depth = depth
        return page

    @cython.cfunc
    def dirty_way(self, key: bytes, way: cython.pointer[Way]) -> Page:
        """As `own_way` if all of it is dirty already; else None, and nothing was made dirty."""
        page: Page = self._page
        index: cython.int
        depth: cython.int = 0
        while page is not None and page.level:
            index = page.search(bytes_at(key), PyBytes_GET_SIZE(key), 1, 0, 1) - 1
            way.pages[depth] = cython.cast(cython.p_void, page)
            way.at[depth] = index
            depth += 1
            page = page.kids[index]
        way.depth = depth
        return page

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def refuse_if_busy(self) -> cython.int:
        """Refuse if something is half made: see `cowdb.writer.Changes`."""
        changes: Changes = self.changes
        if changes.torn or changes.busy:
            self.opened()
            if changes.torn:
                raise Error(INTERRUPTED)
            if not self.inner:
                raise Error(BUSY)
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def ready(self) -> cython.int:
        """Refuse if the transaction is over; write early if it has grown beyond its budget."""
        changes: Changes = self.changes
        if changes is None:
            self.gone()
        if changes.full():
            changes.spill()
        if self._space is None:
            self.gone()
        return 0

    # ------------------------------------------------------------ put

    def put(self, key, value, *, overwrite=True, append=False):
        """Store `value` under `key`; False, and nothing changed, if it is there and `overwrite` is false.

        With `append`, `key` must be greater than every key of the tree
        (`ValueError`).  Raises `KeySizeError`, `TypeError`, `FullError`.  O(log n).
        """
        return self.store(key, value, bool(overwrite), bool(append)) > 0

    def __setitem__(self, key, value):
        """Store `value` under `key`. O(log n)."""
        self.store(key, value, True, False)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def store(self, key, value, overwrite: cython.bint, append: cython.bint) -> cython.int:
        name: bytes = key if type(key) is bytes else as_key(key)
        content: bytes = value if type(value) is bytes else as_key(value)
        if PyBytes_GET_SIZE(name) > self.key_limit:
            if self.changes is None:
                self.gone()
            raise KeySizeError(len(name), self.key_limit)
        changes: Changes = self.changes
        if changes is None:
            self.gone()
        busy: cython.bint = changes.busy
        self.refuse_if_busy()
        try:
            changes.busy = True
            return self.place(name, content, overwrite, append)
        finally:
            changes.busy = busy

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def place(self, name: bytes, content: bytes, overwrite: cython.bint, append: cython.bint) -> cython.int:
        self.ready()
        if (
            self._tail is not None
            and order_of(
                bytes_at(name), PyBytes_GET_SIZE(name), bytes_at(self._greatest), PyBytes_GET_SIZE(self._greatest)
            )
            > 0
        ):
            self.put_last(name, content)
            return 1
        if append:
            last = self.edge(last=True)
            if last is not None and name <= last[0]:
                raise ValueError(f"append: {name!r} is not greater than the last key {last[0]!r}")
        found: Found
        if not overwrite and self.locate(bytes_at(name), PyBytes_GET_SIZE(name), cython.address(found)):
            return 0
        self.put_in(name, content)
        return 1

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def put_in(self, key: bytes, value: bytes) -> cython.int:
        changes: Changes = self.changes
        cells: Cells
        info: cython.int
        payload: bytes
        if self.own_root() is None:
            changes.torn = True
            payload = self.laid_aside(value)
            info = OVERFLOW_INFO if payload is not value else cython.cast(cython.int, PyBytes_GET_SIZE(value))
            cells = Cells(self.page_size, 0, self.opened().frames)
            cells.insert(0, key, info, payload, None)
            self._page = cells.build(0, 1)
            self.depth = 1
            self.leaf_pages = 1
            changes.dirty += self.page_size
        else:
            way: Way
            leaf: Page = self.own_way(key, cython.address(way))
            _root: Page = self._page  # the way is borrowed from it, and a signal's handler may end the transaction
            at: Bytes = bytes_at(key)
            length: cython.Py_ssize_t = PyBytes_GET_SIZE(key)
            view: View
            leaf.show(cython.address(view))
            index: cython.int = boundary(cython.address(view), at, length, 0, 2, 0)
            if index < 0:
                raise leaf.broken()
            step: cython.int
            page: Page
            changes.torn = True
            payload = self.laid_aside(value)
            info = OVERFLOW_INFO if payload is not value else cython.cast(cython.int, PyBytes_GET_SIZE(value))
            size: cython.int = cython.cast(cython.int, PyBytes_GET_SIZE(payload))
            if view.exact:
                if self.overflow_pages:
                    self.release_entry(leaf, index)
                if not leaf.overwrite(index, info, bytes_at(payload)):
                    leaf.take(index)
                    leaf.count -= 1
                    if leaf.add(index, at, length, info, bytes_at(payload), size):
                        leaf.count += 1
                    else:
                        self.divide_leaf(pairs_of(cython.address(way)), leaf, index, key, info, payload)
            else:
                at_end: cython.bint = index == leaf.cells
                for step in range(way.depth):
                    page = cython.cast(Page, way.pages[step])
                    page.count += 1
                    at_end = at_end and way.at[step] == page.cells - 1
                if leaf.add(index, at, length, info, bytes_at(payload), size):
                    leaf.count += 1
                    if at_end:
                        self._tail = pages_of(cython.address(way), leaf)
                        self._greatest = key
                else:
                    self.divide_leaf(pairs_of(cython.address(way)), leaf, index, key, info, payload)
        self.changes_made += 1
        changes.operations += 1
        changes.inserted = True
        changes.torn = False
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def put_last(self, key: bytes, value: bytes) -> cython.int:
        """Put a key that is greater than all others: the way to the last leaf is known."""
        changes: Changes = self.changes
        tail: list = self._tail
        depth: cython.int = cython.cast(cython.int, PyList_GET_SIZE(tail)) - 1
        leaf: Page = cython.cast(Page, tail[depth])
        page: Page
        step: cython.int
        changes.torn = True
        payload: bytes = self.laid_aside(value)
        info: cython.int = OVERFLOW_INFO if payload is not value else cython.cast(cython.int, PyBytes_GET_SIZE(value))
        for step in range(depth + 1):
            page = cython.cast(Page, tail[step])
            page.count += 1
        if leaf.add(
            leaf.cells,
            bytes_at(key),
            PyBytes_GET_SIZE(key),
            info,
            bytes_at(payload),
            cython.cast(cython.int, PyBytes_GET_SIZE(payload)),
        ):
            self._greatest = key
        else:
            leaf.count -= 1
            path: list = []
            for page in tail[:depth]:
                path.append((page, page.cells - 1))
            self.divide_leaf(path, leaf, leaf.cells, key, info, payload)
            page = self.current([])
            tail = [page]
            while page.level:
                page = self.own(page, page.cells - 1)
                tail.append(page)
            self._tail = tail
            self._greatest = key
        self.changes_made += 1
        changes.operations += 1
        changes.inserted = True
        changes.torn = False
        return 0

    def update(self, pairs) -> None:
        """Put every pair.  Sorted input is fastest and leaves well filled pages. O(log n) each."""
        rest: cython.int = 0
        thread: cython.p_void
        for pair in pairs:
            if type(pair) is tuple and len(pair) == 2:
                self.store(cython.cast(tuple, pair)[0], cython.cast(tuple, pair)[1], True, False)
            else:
                try:
                    key, value = pair
                except (TypeError, ValueError):
                    raise TypeError(f"update takes a mapping or pairs of key and value, not {pair!r}") from None
                self.store(key, value, True, False)
            rest += 1
            if rest == 500:
                # Nothing here is half made: let other threads have their turn, and signals their handlers.
                rest = 0
                thread = PyEval_SaveThread()
                PyEval_RestoreThread(thread)
                PyErr_CheckSignals()

    @cython.cfunc
    def laid_aside(self, value: bytes) -> bytes:
        """What stands for `value` in a leaf: itself, or the reference to an overflow run that is not written yet."""
        length: cython.Py_ssize_t = PyBytes_GET_SIZE(value)
        if length <= self.inline_limit:
            return value
        number: cython.longlong = self.pending
        self.pending += 1
        self.large[number] = value
        self.overflow_pages += fmt.overflow_pages(length, self.page_size)
        self.changes.dirty += length
        self.changes.end(length)
        return fmt.Reference(0, self.changes.birth, length, number).pack()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def release_entry(self, leaf: Page, index: cython.int) -> cython.int:
        found: Found
        leaf.entry(index, cython.address(found))
        if found.info >> 14 == OVERFLOW:
            self.release(as_bytes(found.payload, found.length))
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def release(self, payload: bytes) -> cython.int:
        """Free the overflow run behind a packed reference."""
        if len(payload) != REFERENCE:
            raise CorruptionError(-1, "a reference is cut short")
        ref: Ref
        read_ref(bytes_at(payload), cython.address(ref))
        pages: cython.longlong = fmt.overflow_pages(ref.count, self.page_size)
        if ref.number:
            self.free_run(ref.number, pages, ref.birth)
        else:
            self.waiting(ref.checksum)
            del self.large[ref.checksum]
            self.changes.ended -= ref.count
            self.changes.less(ref.count)
        self.overflow_pages -= pages
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def free_run(self, number: u64, pages: cython.longlong, birth: u64) -> cython.int:
        """Note a run as freed; a forged reference frees nothing outside the file or of the future (I4, I10)."""
        space: Space = self.opened()
        if (
            number < 2
            or number >= space.pages
            or cython.cast(u64, pages) > space.pages - number
            or birth > self.changes.birth
        ):
            raise CorruptionError(number, f"a reference to {pages} pages, born in {birth}, makes no sense")
        self.changes.freed.append((number, pages, birth))
        return 0

    # ------------------------------------------------------------ split

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def swap(self, path: list, page: Page) -> cython.int:
        """Let `page` stand where `path` leads."""
        if path:
            parent: Page
            parent, index = path[-1]
            parent.kids[index] = page
        else:
            self._page = page
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def divide_leaf(
        self, path: list, leaf: Page, index: cython.int, key: bytes, info: cython.int, payload: bytes
    ) -> cython.int:
        """Insert where `leaf` as it is has no room: rebuild it, or divide it."""
        self._tail = None
        cells: Cells = Cells(self.page_size, 0)
        cells.reserve(leaf.cells + 1)
        cells.add_page(leaf)
        cells.insert(index, key, info, payload, None)
        cells.measure()
        if cells.bytes_of(0, cells.count) <= self._slack:
            self.swap(path, cells.build(0, cells.count))
            return 0
        place: cython.int
        left: Page
        right: Page
        lower, upper = bounds_of(path)
        if index == cells.count - 1 and upper is None:
            place = index
            left = leaf
            right = cells.build(index, cells.count)
            self.changes.end(self.page_size)
        elif index == 0 and lower is None:
            place = 1
            left = cells.build(0, 1)
            right = leaf
        else:
            place = cells.series_end(index, lower, upper)
            if not place or not cells.fits(0, place) or not cells.fits(place, cells.count):
                place = cells.middle()
            left = cells.build(0, place)
            right = cells.build(place, cells.count)
        self.leaf_pages += 1
        self.changes.dirty += self.page_size
        self.swap(path, left)
        self.add_child(path, separator_at(cells, place), left, right)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def add_child(self, path: list, separator: bytes, left: Page, right: Page) -> cython.int:
        """Insert `right` after `left`, which stands where `path` leads; divides branches upward as needed."""
        parent: Page
        index: cython.int
        place: cython.int
        cells: Cells
        while path:
            path = path[:]
            parent, index = path.pop()
            index += 1
            if parent.add(index, bytes_at(separator), PyBytes_GET_SIZE(separator), -1, cython.NULL, REFERENCE):
                parent.kids.insert(index, right)
                return 0
            cells = Cells(self.page_size, parent.level)
            cells.reserve(parent.cells + 1)
            cells.add_page(parent)
            cells.insert(index, separator, 0, BLANK, right)
            cells.measure()
            if cells.bytes_of(0, cells.count) <= self._slack:
                self.swap(path, cells.build(0, cells.count))
                return 0
            if index == cells.count - 1 and at_end(path):
                place = index - 1
            else:
                place = cells.middle()
            separator = cells.key(place)
            left = cells.build(0, place)
            right = cells.build(place, cells.count)
            self.branch_pages += 1
            self.changes.dirty += self.page_size
            self.swap(path, left)
        cells = Cells(self.page_size, left.level + 1, left.frames())
        cells.insert(0, b"", 0, BLANK, left)
        cells.insert(1, separator, 0, BLANK, right)
        self._page = cells.build(0, 2)
        self.depth = left.level + 2
        self.branch_pages += 1
        self.changes.dirty += self.page_size
        return 0

    # ------------------------------------------------------------ delete

    def delete(self, key):
        """Remove `key`; False if it is not there. O(log n)."""
        return self.erase(key if type(key) is bytes else as_key(key)) > 0

    def __delitem__(self, key):
        """Remove `key`; `KeyNotFoundError` if it is not there. A slice: as `delete_range`. O(log n)."""
        wanted = key if type(key) is bytes else lookup_key(key)
        if wanted is None and isinstance(key, slice):
            if key.step is not None:
                raise ValueError("a slice of a tree has no step")
            self.delete_range(key.start, key.stop)
        elif wanted is None or not self.erase(wanted):
            raise KeyNotFoundError(key)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def erase(self, key: bytes) -> cython.int:
        changes: Changes = self.changes
        if changes is None:
            self.gone()
        busy: cython.bint = changes.busy
        self.refuse_if_busy()
        try:
            changes.busy = True
            return self.take_out(key)
        finally:
            changes.busy = busy

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take_out(self, key: bytes) -> cython.int:
        found: Found
        changes: Changes = self.changes
        way: Way
        view: View
        page: Page
        step: cython.int
        _root: Page = self._page  # the way is borrowed from it, and a signal's handler may end the transaction
        at: Bytes = bytes_at(key)
        length: cython.Py_ssize_t = PyBytes_GET_SIZE(key)
        leaf: Page = None
        if self._space is not None and not changes.full():
            leaf = self.dirty_way(key, cython.address(way))
        if leaf is None:
            # The way is not dirty yet: only a key that is there makes it so.
            if not self.locate(at, length, cython.address(found)):
                return 0
            self.ready()
            leaf = self.own_way(key, cython.address(way))
            _root = self._page
        leaf.show(cython.address(view))
        index: cython.int = boundary(cython.address(view), at, length, 0, 2, 0)
        if index < 0:
            raise leaf.broken()
        if not view.exact:
            return 0
        changes.torn = True
        self._tail = None
        if self.overflow_pages:
            self.release_entry(leaf, index)
        leaf.take(index)
        leaf.count -= 1
        for step in range(way.depth):
            page = cython.cast(Page, way.pages[step])
            page.count -= 1
        self.changes_made += 1
        changes.operations += 1
        changes.torn = False
        if self.is_small(leaf):
            self.rebalance(pairs_of(cython.address(way)), leaf)
        return 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def is_small(self, page: Page) -> cython.bint:
        """True if `page` should be merged, or is a branch that leads nowhere else."""
        return page.taken() < self.page_size // 4 or (page.level > 0 and page.cells < 2)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def rebalance(self, path: list, page: Page) -> cython.int:
        """Merge a page that has become small, or let it share with a neighbour; then look at its parent."""
        changes: Changes = self.changes
        torn: cython.bint = changes.torn
        parent: Page
        left: Page
        right: Page
        index: cython.int
        first: cython.int
        while self.is_small(page):
            if not path:
                self.shrink_root(page)
                break
            parent, index = path[-1]
            path = path[:-1]
            if not page.cells:
                self.drop_child(path, parent, index)
            else:
                first = index if index + 1 < parent.cells else index - 1
                # Both are made dirty before anything changes: a damaged neighbour leaves the tree as it was, which
                # may be committed with a small page, but not with a branch that leads nowhere else.
                changes.torn = torn or (page.level > 0 and page.cells < 2)
                if first < 0:
                    raise CorruptionError(-1, "a branch leads nowhere else")
                left = self.own(parent, first)
                right = self.own(parent, first + 1)
                self.join(path, parent, first, left, right)
            page = self.current(path)
        changes.torn = torn
        return 0

    @cython.cfunc
    def current(self, path: list) -> Page:
        """The dirty page where `path` leads now."""
        if not path:
            if self._page is None:
                self.opened()  # it has ended meanwhile, out of a signal's handler
            assert self._page is not None
            return self._page
        parent: Page
        parent, index = path[-1]
        return self.own(parent, index)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def shrink_root(self, root: Page) -> cython.int:
        """An empty leaf makes an empty tree; a branch with one child gives way to that child."""
        if root.level == 0:
            if not root.cells:
                self._page = None
                self.forget_root()
                self.leaf_pages = 0
            return 0
        while root.level and root.cells == 1:
            self.branch_pages -= 1
            self.depth = root.level
            self._page = root.kids[0]
            if self._page is None:
                root.child_ref(0, cython.address(self.root))
                return 0
            root = self._page
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def forget_root(self) -> cython.void:
        """The tree is empty."""
        self.root.number = self.root.birth = self.root.count = self.root.checksum = 0
        self.depth = 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def drop_child(self, path: list, parent: Page, index: cython.int) -> cython.int:
        """Take the empty leaf `index` out of `parent`, which stands where `path` leads."""
        self.changes.torn = True
        self.leaf_pages -= 1
        cells: Cells = Cells(self.page_size, parent.level)
        cells.add_page(parent)
        cells.remove(index, index + 1)
        self.swap(path, cells.build(0, cells.count))
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def join(self, path: list, parent: Page, first: cython.int, left: Page, right: Page) -> cython.int:
        """Merge children `first` and `first` + 1 of `parent`, or divide their entries evenly."""
        separator: bytes = parent.key(first + 1)
        self.changes.torn = True
        both: Cells = Cells(self.page_size, left.level)
        both.reserve(left.cells + right.cells)
        both.add_page(left)
        both.add_page(right)
        if left.level:
            both.name(left.cells, separator)
        both.measure()
        here: list = path[:]
        here.append((parent, first))
        parent.take(first + 1)
        if both.bytes_of(0, both.count) <= self._slack:
            self.swap(here, both.build(0, both.count))
            if left.level:
                self.branch_pages -= 1
            else:
                self.leaf_pages -= 1
            self.changes.less(self.page_size)
            return 0
        place: cython.int = both.middle()
        separator = both.key(place) if left.level else separator_at(both, place)
        new_left: Page = both.build(0, place)
        new_right: Page = both.build(place, both.count)
        self.swap(here, new_left)
        self.add_child(here, separator, new_left, new_right)
        return 0


@cython.cfunc
def pages_of(way: cython.pointer[Way], leaf: Page) -> list:
    """The pages of a way, and the leaf that it leads to."""
    found: list = []
    step: cython.int
    for step in range(way.depth):
        found.append(cython.cast(Page, way.pages[step]))
    found.append(leaf)
    return found


@cython.cfunc
def pairs_of(way: cython.pointer[Way]) -> list:
    """A way as a list of pages with their indexes, which holds the pages."""
    found: list = []
    step: cython.int
    for step in range(way.depth):
        found.append((cython.cast(Page, way.pages[step]), way.at[step]))
    return found


@cython.cfunc
def bounds_of(path: list) -> tuple:
    """The separators that bound the leaf that the way leads to; None at the edges of the tree."""
    lower: object = None
    upper: object = None
    page: Page
    index: cython.int
    for page, index in reversed(path):
        if lower is None and index:
            lower = page.key(index)
        if upper is None and index + 1 < page.cells:
            upper = page.key(index + 1)
    return lower, upper


@cython.cfunc
@cython.exceptval(-1, check=False)
def at_end(path: list) -> cython.int:
    """1 if the way leads along the right edge of the tree."""
    page: Page
    index: cython.int
    for page, index in path:
        if index != page.cells - 1:
            return 0
    return 1


@cython.cfunc
def separator_at(cells: Cells, place: cython.int) -> bytes:
    """The shortest key that divides entry `place` of a leaf from the one before."""
    a: cython.pointer[Cell] = cells.cells + place - 1
    b: cython.pointer[Cell] = cells.cells + place
    length: cython.int = common(a.key, a.key_length, b.key, b.key_length) + 1
    return as_bytes(b.key, length if length < b.key_length else b.key_length)
