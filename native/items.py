"""Scans over a range: the twin of `cowdb.cursor.scan`.

A scan takes its entries straight out of the leaf that its path leads to.  It
asks at every step whether its transaction still lives and, in a write
transaction, whether the tree has changed, and then seeks again behind the last
key that it gave.  An error ends it.  Threads may share one: each entry is given once.
"""

from __future__ import annotations

from native.memory import *
from native.page import *
from native.path import *
from native.tree import *
from native.writer import *


def scan(
    tree: Reader,
    kind: cython.int,
    low: bytes | None,
    high: bytes | None,
    *,
    reverse: cython.bint = False,
    limit=None,
):
    """Keys (0), values (1) or items (2) of `tree` with low <= key < high, in key order or against it.

    O(log n) to begin, then O(1) an entry, amortised.
    """
    tree.opened()
    items: Items = Items.__new__(Items)
    items.tree = tree
    items.writer = tree if isinstance(tree, Writer) else None
    items.kind = kind
    items.low = low
    items.high = high
    items.reverse = reverse
    items.left = cython.cast(cython.longlong, 1) << 62
    if limit is not None and limit < items.left:
        items.left = limit if limit > 0 else 0
    items.again = True
    return items


@cython.final
@cython.no_gc_clear
@cython.cclass
class Items:
    """An iterator over a range; made by `scan`."""

    tree = cython.declare(Reader)
    writer = cython.declare(Writer)  # the same, if it may change
    version = cython.declare(cython.longlong)
    kind = cython.declare(cython.int)
    low = cython.declare(bytes)
    high = cython.declare(bytes)
    reverse = cython.declare(cython.bint)
    left = cython.declare(cython.longlong)  # how many may still be given
    again = cython.declare(cython.bint)  # seek before the next one
    path = cython.declare(Path)
    leaf = cython.declare(Page)
    view = cython.declare(View)
    index = cython.declare(cython.int)  # of the entry to be given
    stop = cython.declare(cython.int)  # ... as long as it is not this one
    last = cython.declare(bytes)  # the key that was given last, if the tree may change
    leaves = cython.declare(cython.longlong)  # clean ones that may still come: a forged file may lead to one many times

    def __iter__(self):
        return self

    @cython.critical_section
    def __next__(self):
        if self.left <= 0:
            raise StopIteration
        tree: Reader = self.tree
        if tree._space is None:
            self.left = 0
            tree.gone()
        if self.writer is not None and not self.again and self.version != self.writer.changes_made:
            # The tree was changed: seek behind the last key that was given.
            self.go_on()
        if self.again or self.index == self.stop:
            if not self.advance():
                raise StopIteration
        index: cython.int = self.index
        self.index += -1 if self.reverse else 1
        self.left -= 1
        view: cython.pointer[View] = cython.address(self.view)
        slot: u64 = get64(view.slots + 8 * index)
        at: cython.int = cython.cast(cython.int, slot >> 16 & 0xFFFF)
        size: cython.int = cython.cast(cython.int, slot & 0xFFFF)
        middle: cython.int = at + 2 + size
        info: cython.int = 0
        length: cython.int = 0
        if middle <= view.size:
            info = cython.cast(cython.int, get16(view.at + at))
            length = info & LENGTH_MASK
        if middle + length > view.size:
            self.left = 0
            tree.still_open()
            raise broken(view)
        key: bytes = None
        if self.kind != 1 or self.writer is not None:
            key = joined(view.at + HEADER, view.prefix, view.at + at + 2, size)
            if self.writer is not None:
                self.last = key
            if not self.kind:
                tree.still_open()
                return key
        value: bytes
        if info <= LENGTH_MASK:
            value = as_bytes(view.at + middle, length)
            tree.still_open()
        else:
            value = self.large(view.at + middle, info, length)
        if self.kind == 1:
            return value
        return key, value

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def go_on(self) -> cython.int:
        """The tree was changed: seek behind the last key. Each time the range must become smaller (I7)."""
        last: bytes = self.last
        self.again = True
        if last is None:
            return 0
        if self.reverse:
            if self.high is not None and last >= self.high:
                self.endless()
            self.high = last
        else:
            if self.low is not None and last < self.low:
                self.endless()
            self.low = last + b"\0"
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def endless(self) -> cython.int:
        self.left = 0
        raise CorruptionError(-1, "a tree has more leaves than the file has pages, or its keys do not rise")

    @cython.cfunc
    def large(self, payload: Bytes, info: cython.int, length: cython.int) -> bytes:
        found: Found
        found.payload = payload
        found.info = info
        found.length = length
        left: cython.longlong = self.left
        self.left = 0  # an error is the end
        value = self.tree.large_value(cython.address(found))
        self.left = left
        return value

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def advance(self) -> cython.int:
        """Go to the first leaf of the range, or to the next one; 0, and it is over, if there is none."""
        try:
            return self.go_to_leaf()
        except CorruptionError:
            self.tree.still_open()
            raise

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def go_to_leaf(self) -> cython.int:
        """The work of `advance`."""
        left: cython.longlong = self.left
        self.left = 0  # whatever is raised here is the end
        more: cython.int
        if self.again:
            if self.writer is not None:
                self.version = self.writer.changes_made
            self.path = Path(self.tree)
            self.leaves = self.tree.opened().pages
            if self.reverse:
                more = self.path.to_edge(True) if self.high is None else self.path.to_before(self.high, False)
            else:
                more = self.path.to_edge(False) if self.low is None else self.path.to(self.low)
            self.again = False
        elif self.reverse:
            # A leaf that the range does not fill to its start was the last one.
            more = 0 if self.stop >= 0 else self.path.to_previous_leaf()
        else:
            more = 0 if self.stop < self.leaf.cells else self.path.to_next_leaf()
        if not more:
            return 0
        leaf: Page = self.path.pages[-1]
        self.leaf = leaf
        if leaf.base != leaf.window.at:  # a dirty page lies in memory of its own
            self.leaves -= 1
            if self.leaves < 0:
                self.endless()
        leaf.show(cython.address(self.view))
        self.index = self.path.indexes[-1]
        if self.reverse:
            self.stop = -1
            if self.low is not None:
                self.stop = leaf.search(bytes_at(self.low), PyBytes_GET_SIZE(self.low), 0, 2, 0) - 1
            if self.index <= self.stop:
                return 0
        else:
            self.stop = leaf.cells
            if self.high is not None:
                self.stop = leaf.search(bytes_at(self.high), PyBytes_GET_SIZE(self.high), 0, 2, 0)
            if self.index >= self.stop:
                return 0
        self.left = left
        return 1
