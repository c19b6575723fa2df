"""A place in a tree, the pages from the root down to one leaf: the twin of `cowdb.path`.

Threads that share one find it whole, wherever one of them may have led it.
"""

from __future__ import annotations

from native.memory import *
from native.page import *
from native.tree import *


@cython.final
@cython.cclass
class Path:
    """Pages and indexes from the root to a leaf of `tree`; see `cowdb.path.Path`."""

    tree = cython.declare(Reader, visibility="readonly")
    pages = cython.declare(list, visibility="readonly")
    indexes = cython.declare(list, visibility="readonly")

    def __init__(self, tree: Reader):
        self.tree = tree
        self.pages = []
        self.indexes = []

    @property
    def leaf(self):
        """The leaf that the path ends in."""
        with cython.critical_section(self):
            found = self.pages[-1]
        return found

    @property
    def index(self):
        """The index within the leaf."""
        with cython.critical_section(self):
            found = self.indexes[-1]
        return found

    @cython.cfunc
    def restart(self) -> Page:
        self.pages = []
        self.indexes = []
        return self.tree.top()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def step(self, page: Page, index: cython.int) -> cython.int:
        self.pages.append(page)
        self.indexes.append(index)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def down(self, page: Page, last: cython.bint) -> cython.int:
        """Go from `page` down to its first or last leaf entry."""
        index: cython.int
        while page.level:
            index = page.cells - 1 if last else 0
            self.step(page, index)
            page = self.tree.go_down(page, index)
        self.step(page, page.cells - 1 if last else 0)
        return 0

    @cython.critical_section
    def edge(self, *, last: cython.bint):
        """Go to the first or last entry; False if the tree is empty. O(depth)."""
        return bool(self.to_edge(last))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def to_edge(self, last: cython.bint) -> cython.int:
        page: Page = self.restart()
        if page is None:
            return 0
        self.down(page, last)
        return 1

    @cython.critical_section
    def seek(self, key: bytes):
        """Go to the first entry whose key is >= `key`; False if there is none. O(log n)."""
        return bool(self.to(key))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def to(self, key: bytes) -> cython.int:
        page: Page = self.restart()
        if page is None:
            return 0
        index: cython.int
        length: cython.Py_ssize_t = PyBytes_GET_SIZE(key)
        while page.level:
            index = page.search(bytes_at(key), length, 1, 0, 1) - 1
            self.step(page, index)
            page = self.tree.go_down(page, index)
        index = page.search(bytes_at(key), length, 0, 2, 0)
        self.step(page, index)
        return 1 if index < page.cells else self.to_next_leaf()

    @cython.critical_section
    def seek_before(self, key: bytes, *, inclusive: cython.bint):
        """Go to the last entry whose key is < `key` (<= if `inclusive`); False if there is none. O(log n)."""
        return bool(self.to_before(key, inclusive))

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def to_before(self, key: bytes, inclusive: cython.bint) -> cython.int:
        if not self.to(key):
            return self.to_edge(True)
        leaf: Page = self.pages[-1]
        if inclusive and leaf.has(self.indexes[-1], key):
            return 1
        return self.move(-1)

    @cython.critical_section
    def select(self, rank: cython.longlong) -> None:
        """Go to entry number `rank`, which must exist. O(depth times cells of a branch)."""
        page: Page = self.restart()
        assert page is not None
        while page.level:
            index, rank = page.child_of_rank(rank)
            self.step(page, index)
            page = self.tree.go_down(page, index)
        if rank >= page.cells:
            raise CorruptionError(-1, "a branch counts more entries than the leaf below it has")
        self.step(page, rank)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def move(self, by: cython.int) -> cython.int:
        leaf: Page = self.pages[-1]
        index: cython.int = self.indexes[-1] + by
        self.indexes[-1] = index
        if index < 0:
            return self.to_previous_leaf()
        return 1 if index < leaf.cells else self.to_next_leaf()

    @cython.critical_section
    def forward(self):
        """Go to the next entry; False, and the path is spent, if there is none."""
        return bool(self.move(1))

    @cython.critical_section
    def backward(self):
        """Go to the previous entry; False, and the path is spent, if there is none."""
        return bool(self.move(-1))

    @cython.critical_section
    def next_leaf(self):
        """Go to the first entry of the next leaf; False, and the path is spent, if there is none."""
        return bool(self.to_next_leaf())

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def to_next_leaf(self) -> cython.int:
        self.pages.pop()
        self.indexes.pop()
        while self.pages:
            page: Page = self.pages[-1]
            index: cython.int = self.indexes[-1] + 1
            if index < page.cells:
                self.indexes[-1] = index
                self.down(self.tree.go_down(page, index), False)
                return 1
            self.pages.pop()
            self.indexes.pop()
        return 0

    @cython.critical_section
    def previous_leaf(self):
        """Go to the last entry of the previous leaf; False, and the path is spent, if there is none."""
        return bool(self.to_previous_leaf())

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def to_previous_leaf(self) -> cython.int:
        self.pages.pop()
        self.indexes.pop()
        while self.pages:
            page: Page = self.pages[-1]
            index: cython.int = self.indexes[-1] - 1
            if index >= 0:
                self.indexes[-1] = index
                self.down(self.tree.go_down(page, index), True)
                return 1
            self.pages.pop()
            self.indexes.pop()
        return 0
