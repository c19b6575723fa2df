"""Looking into one tree: the twin of `cowdb.tree`.

A lookup goes from the root to the entry in one call and makes no object but its
result.  In a tree that is being changed it goes through the dirty pages first,
which are objects, and from the first clean page on through the mapping.

One call lets no other thread in that could close the tree, so what was found need
not be doubted as in the plain form.  Where the interpreter has no lock of its own,
another thread may: then `still_open` looks again, and `lent` keeps the mapping as
long as there is somebody to look into it.
"""

from __future__ import annotations

from native.memory import *
from native.page import *
from native.space import *


@cython.cclass
class Reader:
    """Looks into one tree; see `cowdb.tree.Reader`, whose names these are."""

    _space = cython.declare(Space)
    _abandoned = cython.declare(cython.bint)  # by a forked child
    root = cython.declare(Ref)
    depth = cython.declare(cython.int, visibility="public")
    _page = cython.declare(Page)
    changes_made = cython.declare(cython.longlong)
    lent: object  # without the interpreter's lock: what `_space` was, which another thread may set to None
    _pin = cython.declare(object, visibility="public")  # for views of values; see the plain form

    def __init__(self, space, descriptor):
        self.look_at(space, tuple_of(descriptor, 5))

    @cython.final
    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def look_at(self, space, descriptor: tuple) -> cython.int:
        """Look into the tree that the fields of a descriptor describe."""
        self.space = space
        reference: tuple = tuple_of(descriptor[0], 4)
        self.root.number = reference[0]
        self.root.birth = reference[1]
        self.root.count = reference[2]
        self.root.checksum = reference[3]
        depth: cython.int = descriptor[1]
        if not 0 <= depth <= 48:
            raise CorruptionError(self.root.number, f"a tree of {depth} levels")
        self.depth = depth
        return 0

    # ------------------------------------------------------------ what it looks at

    @property
    def version(self):
        """A tree that is being changed counts its changes here."""
        return self.changes_made

    @property
    def space(self):
        """The mapping to look into; None after `close`."""
        return FORKED if self._abandoned else self._space

    @space.setter
    def space(self, space):
        self._abandoned = space is FORKED
        self._space = None if self._abandoned else space
        if COWDB_FREE_THREADED and self._space is not None:
            self.lent = space

    @property
    def page(self):
        """The dirty root of a tree that is being changed, else None."""
        return self._page

    @page.setter
    def page(self, page: Page | None):
        self._page = page

    @property
    def bits(self):
        """The packed reference to the root."""
        return pack_ref(cython.address(self.root))

    def close(self) -> None:
        """Let go of the file; later uses raise `ClosedError`."""
        self.shut()

    @cython.final
    @cython.cfunc
    @cython.exceptval(check=False)
    def shut(self) -> cython.void:
        self._space = None
        self._abandoned = False
        self._page = None
        self._pin = None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def gone(self) -> cython.int:
        """Say why there is no mapping any more."""
        if self._abandoned:
            refuse()
        raise ClosedError("this transaction has ended; begin another one with read() or write()")

    @cython.cfunc
    @cython.inline
    def opened(self) -> Space:
        if self._space is None:
            self.gone()
        return self._space

    def open_space(self):
        """The mapping to look into; raises `ClosedError` after `close`."""
        return self.opened()

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def still_open(self) -> cython.int:
        """Raise `ClosedError` if another thread has closed the tree while this one looked into it."""
        if COWDB_FREE_THREADED:
            fence()
            if self._space is None:
                self.gone()
        return 0

    # ------------------------------------------------------------ pages

    def load(self, bits, level: cython.int) -> Page:
        """The clean page that the packed reference `bits` leads to, verified. O(1) once it was met."""
        ref: Ref
        unpack_ref(bits, cython.address(ref))
        return self.clean(cython.address(ref), level)

    @cython.cfunc
    def clean(self, ref: cython.pointer[Ref], level: cython.int) -> Page:
        space: Space = self.opened()
        view: View
        space.reach(ref, level, cython.address(view))
        return clean_page(space.window, cython.address(view))

    def root_page(self):
        """The root, clean or dirty; None if the tree is empty."""
        return self.top()

    @cython.cfunc
    def top(self) -> Page:
        if self._page is not None:
            return self._page
        if self._space is None or not self.depth:
            self.opened()
            return None
        return self.clean(cython.address(self.root), self.depth - 1)

    def child(self, page: Page, index: cython.Py_ssize_t) -> Page:
        """Child `index` of a branch, clean or dirty."""
        page.check_index(index)
        return self.go_down(page, index)

    @cython.cfunc
    def go_down(self, page: Page, index: cython.int) -> Page:
        kid: Page
        if page.kids is not None:
            kid = page.kids[index]
            if kid is not None:
                return kid
        ref: Ref
        page.child_ref(index, cython.address(ref))
        return self.clean(cython.address(ref), page.level - 1)

    # ------------------------------------------------------------ one key

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def descend(self, key: Bytes, length: cython.Py_ssize_t, found: cython.pointer[Found]) -> cython.int:
        """The work of `locate`."""
        view: View
        ref: Ref
        place: cython.int
        at: Bytes
        space: Space = self._space
        if space is None:
            self.gone()
        level: cython.int = self.depth - 1
        ref = self.root
        page: Page = self._page
        while page is not None:
            level = page.level
            page.show(cython.address(view))
            if not level:
                return in_leaf(cython.address(view), key, length, found)
            place = boundary(cython.address(view), key, length, 1, 0, 1) - 1
            if place < 0:
                raise broken(cython.address(view))
            level -= 1
            if page.kids[place] is None:
                page.child_ref(place, cython.address(ref))
                break
            page = cython.cast(Page, page.kids[place])
        if level < 0:
            return 0
        while True:
            space.reach(cython.address(ref), level, cython.address(view))
            if not level:
                return in_leaf(cython.address(view), key, length, found)
            place = boundary(cython.address(view), key, length, 1, 0, 1) - 1
            if place < 0:
                raise broken(cython.address(view))
            at = child_at(cython.address(view), place)
            if at == cython.NULL:
                raise broken(cython.address(view))
            read_ref(at, cython.address(ref))
            level -= 1

    @cython.final
    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def locate(self, key: Bytes, length: cython.Py_ssize_t, found: cython.pointer[Found]) -> cython.int:
        """Find the payload of the entry of `key` in a tree that is open still: 1, or 0 if it is not there. O(log n)."""
        if not COWDB_FREE_THREADED:
            return self.descend(key, length, found)
        there: cython.int
        try:
            there = self.descend(key, length, found)
        except CorruptionError:
            self.still_open()
            raise
        self.still_open()
        return there

    def find(self, key: bytes):
        """Kind and length, and payload, of the entry of `key`; None if it is not there. O(log n)."""
        found: Found
        if not self.locate(bytes_at(key), PyBytes_GET_SIZE(key), cython.address(found)):
            return None
        payload = as_bytes(found.payload, found.length)
        self.still_open()
        return found.info, payload

    def get(self, key, default=None, /):
        """The value of `key`, or `default`. O(log n)."""
        if type(key) is not bytes:
            key = lookup_key(key)
            if key is None:
                return default
        wanted: bytes = key
        found: Found
        if not self.locate(bytes_at(wanted), PyBytes_GET_SIZE(wanted), cython.address(found)):
            return default
        return self.value_of(cython.address(found))

    def __getitem__(self, key):
        """The value of `key` (`KeyNotFoundError` if there is none), or a view of the items of a slice. O(log n)."""
        wanted: bytes
        if type(key) is bytes:
            wanted = key
        elif type(key) is slice:
            if key.step is not None:
                raise ValueError("a slice of a tree has no step")
            return self.items(key.start, key.stop)
        else:
            plain = lookup_key(key)
            if plain is None:
                raise KeyNotFoundError(key)
            wanted = plain
        found: Found
        if not self.locate(bytes_at(wanted), PyBytes_GET_SIZE(wanted), cython.address(found)):
            raise KeyNotFoundError(key)
        return self.value_of(cython.address(found))

    @cython.final
    @cython.cfunc
    @cython.inline
    def value_of(self, found: cython.pointer[Found]):
        """The value of the entry that was found."""
        if found.info > LENGTH_MASK:
            return self.large_value(found)
        value = as_bytes(found.payload, found.length)
        self.still_open()
        return value

    @cython.cfunc
    def large_value(self, found: cython.pointer[Found]):
        if found.info >> 14 != OVERFLOW or found.length != REFERENCE:
            raise CorruptionError(-1, f"an entry of kind {found.info >> 14}, which this version does not know")
        return self.fetched(found.payload)

    def value(self, info: cython.int, payload: bytes):
        """The value that a leaf entry's kind and payload stand for. O(its length)."""
        if not info >> 14:
            return payload
        found: Found
        found.info = info
        found.payload = bytes_at(payload)
        found.length = cython.cast(cython.int, PyBytes_GET_SIZE(payload))
        return self.large_value(cython.address(found))

    def fetch(self, raw: bytes):
        """The value behind the packed reference of an overflow run."""
        self.opened()
        if len(raw) != REFERENCE:
            raise CorruptionError(-1, "a reference is cut short")
        return self.fetched(bytes_at(raw))

    @cython.cfunc
    def fetched(self, raw: Bytes):
        """The value behind the reference at `raw`."""
        ref: Ref
        read_ref(raw, cython.address(ref))
        space: Space = self.opened()
        try:
            value = as_bytes(space.run(cython.address(ref)), ref.count)
        except CorruptionError:
            self.still_open()
            raise
        self.still_open()
        return value

    def __contains__(self, key):
        """True if there is such a key. O(log n)."""
        if type(key) is not bytes:
            key = lookup_key(key)
            if key is None:
                return False
        wanted: bytes = key
        found: Found
        return self.locate(bytes_at(wanted), PyBytes_GET_SIZE(wanted), cython.address(found)) == 1

    def __len__(self):
        """Number of entries. O(1)."""
        if self._page is not None:
            return self._page.count
        if self._space is None:
            self.gone()
        return self.root.count

    # ------------------------------------------------------------ order

    def rank(self, key: bytes):
        """Number of entries whose key is less than `key`. O(log n)."""
        page: Page = self.top()
        if page is None:
            return 0
        total: cython.longlong = 0
        index: cython.int
        length: cython.Py_ssize_t = PyBytes_GET_SIZE(key)
        try:
            while page.level:
                index = page.search(bytes_at(key), length, 1, 0, 1) - 1
                total += page.sum_before(index)
                page = self.go_down(page, index)
            total += page.search(bytes_at(key), length, 0, 2, 0)
        except CorruptionError:
            self.still_open()
            raise
        self.still_open()
        return total

    def entry(self, path):
        """Key and value at `path`."""
        leaf: Page = path.leaf
        index: cython.Py_ssize_t = path.index
        found: Found
        key: bytes
        try:
            key = leaf.key(index)
            leaf.entry(index, cython.address(found))
            return key, self.value_of(cython.address(found))
        except CorruptionError:
            self.still_open()
            raise

    def path(self):
        """A path that leads nowhere yet. O(1)."""
        return Path(self)

    def select(self, rank):
        """Entry number `rank` in key order, 0 <= rank < len. O(log n)."""
        if not 0 <= rank < len(self):
            raise IndexError(f"index {rank} of a tree of {len(self)} entries")
        path = Path(self)
        try:
            path.select(rank)
        except CorruptionError:
            self.still_open()
            raise
        return self.entry(path)

    def ceiling(self, key):
        """The first entry whose key is >= `key`, or None. O(log n)."""
        path = Path(self)
        wanted: bytes = as_key(key)
        try:
            there = path.seek(wanted)
        except CorruptionError:
            self.still_open()
            raise
        return self.entry(path) if there else None

    def floor(self, key):
        """The last entry whose key is <= `key`, or None. O(log n)."""
        path = Path(self)
        wanted: bytes = as_key(key)
        try:
            there = path.seek_before(wanted, inclusive=True)
        except CorruptionError:
            self.still_open()
            raise
        return self.entry(path) if there else None

    def edge(self, *, last: cython.bint):
        """The first or last entry, or None. O(log n)."""
        path = Path(self)
        try:
            there = path.edge(last=last)
        except CorruptionError:
            self.still_open()
            raise
        return self.entry(path) if there else None


@cython.cfunc
@cython.inline
@cython.exceptval(-1, check=False)
def in_leaf(
    view: cython.pointer[View], key: Bytes, length: cython.Py_ssize_t, found: cython.pointer[Found]
) -> cython.int:
    """Find the payload of the entry of `key` in a leaf: 1, or 0 if it is not there."""
    place: cython.int = boundary(view, key, length, 0, 2, 0)
    if place >= 0:
        if not view.exact:
            return 0
        if entry_at(view, place, found):
            return 1
    raise CorruptionError(get64(view.at + 8), "a cell of it leads outside")
