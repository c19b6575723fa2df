"""A place in a tree: the pages from the root down to one leaf, with an index in each.

    root    [ . | . | X | . ]          path = [root, leaf]
                      |                indexes = [2, 1]
    leaf        [ a | B | c | d ]

A path is good as long as the tree does not change.  Moving to the next entry
costs O(1) within a leaf, O(depth) over its edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from cowdb.page import Page
    from cowdb.tree import Reader

__all__ = ["Path"]


class Path:
    """Pages and indexes from the root to a leaf of `tree`; see the module's text."""

    __slots__ = ("indexes", "pages", "tree")

    def __init__(self, tree: Reader) -> None:
        self.tree = tree
        self.pages: list[Page] = []
        self.indexes: list[int] = []

    @property
    def leaf(self) -> Page:
        """The leaf that the path ends in."""
        return self.pages[-1]

    @property
    def index(self) -> int:
        """The index within the leaf."""
        return self.indexes[-1]

    def _restart(self) -> Page | None:
        self.pages.clear()
        self.indexes.clear()
        return self.tree.root_page()

    def _down(self, page: Page, *, last: bool) -> None:
        """Go from `page` down to its first or last leaf entry."""
        while page.level:
            index = page.cells - 1 if last else 0
            self.pages.append(page)
            self.indexes.append(index)
            page = self.tree.child(page, index)
        self.pages.append(page)
        self.indexes.append(page.cells - 1 if last else 0)

    def edge(self, *, last: bool) -> bool:
        """Go to the first or last entry; False if the tree is empty. O(depth)."""
        page = self._restart()
        if page is None:
            return False
        self._down(page, last=last)
        return True

    def seek(self, key: bytes) -> bool:
        """Go to the first entry whose key is >= `key`; False if there is none. O(log n)."""
        page = self._restart()
        if page is None:
            return False
        while page.level:
            index = page.child_index(key)
            self.pages.append(page)
            self.indexes.append(index)
            page = self.tree.child(page, index)
        index = page.lower_bound(key)
        self.pages.append(page)
        self.indexes.append(index)
        return index < page.cells or self.next_leaf()

    def seek_before(self, key: bytes, *, inclusive: bool) -> bool:
        """Go to the last entry whose key is < `key` (<= if `inclusive`); False if there is none. O(log n)."""
        if not self.seek(key):
            return self.edge(last=True)
        if inclusive and self.leaf.has_key(self.index, key):
            return True
        return self.backward()

    def select(self, rank: int) -> None:
        """Go to entry number `rank`, which must exist. O(depth times cells of a branch)."""
        page = self._restart()
        assert page is not None
        while page.level:
            index, rank = page.child_of_rank(rank)
            self.pages.append(page)
            self.indexes.append(index)
            page = self.tree.child(page, index)
        if rank >= page.cells:
            raise CorruptionError(-1, "a branch counts more entries than the leaf below it has")
        self.pages.append(page)
        self.indexes.append(rank)

    def forward(self) -> bool:
        """Go to the next entry; False, and the path is spent, if there is none."""
        self.indexes[-1] += 1
        return self.indexes[-1] < self.pages[-1].cells or self.next_leaf()

    def backward(self) -> bool:
        """Go to the previous entry; False, and the path is spent, if there is none."""
        self.indexes[-1] -= 1
        return self.indexes[-1] >= 0 or self.previous_leaf()

    def next_leaf(self) -> bool:
        """Go to the first entry of the next leaf; False, and the path is spent, if there is none."""
        self.pages.pop()
        self.indexes.pop()
        while self.pages:
            page = self.pages[-1]
            index = self.indexes[-1] + 1
            if index < page.cells:
                self.indexes[-1] = index
                self._down(self.tree.child(page, index), last=False)
                return True
            self.pages.pop()
            self.indexes.pop()
        return False

    def previous_leaf(self) -> bool:
        """Go to the last entry of the previous leaf; False, and the path is spent, if there is none."""
        self.pages.pop()
        self.indexes.pop()
        while self.pages:
            page = self.pages[-1]
            index = self.indexes[-1] - 1
            if index >= 0:
                self.indexes[-1] = index
                self._down(self.tree.child(page, index), last=True)
                return True
            self.pages.pop()
            self.indexes.pop()
        return False
