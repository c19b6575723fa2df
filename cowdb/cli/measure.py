"""Measuring the pages of a tree: how full they are, and what the keys and values weigh.

    leaf   header | prefix | slots | gap | heap, some of it dead
           `-------- used -------'       `--- used ---'        fill = used / page size

Sums are taken over whole columns of a page's cells at once.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.inspection import Visit
    from cowdb.lookup import Tree
    from cowdb.pagecheck import Page

__all__ = ["Measure", "fill", "leaf_pages", "sizes", "tree_label"]

MAIN: Final = "(main)"


def tree_label(name: str | None) -> str:
    """What a tree is called in tables."""
    return MAIN if name is None else name


def fill(page: Page) -> float:
    """The part of a branch or leaf that is in use, 0 to 1, whatever a forged header says of its dead bytes."""
    cells = page.cells
    prefix = (len(page.prefix) + 7) // 8 * 8
    front = fmt.HEADER_SIZE + prefix + fmt.SLOT_SIZE * cells
    size = len(page.raw)
    return min(max(0.0, (front + size - page.heap - page.dead) / size), 1.0)


def sizes(page: Page) -> list[int]:
    """The length of each value of a leaf; long ones are not read, their reference says it."""
    if page.inline:
        return list(page.words)
    return [
        word if word <= fmt.LENGTH_MASK else fmt.unpack_reference(page.raw[end : end + fmt.REFERENCE_SIZE]).count
        for word, end in zip(page.words, page.ends, strict=True)
    ]


class Measure:
    """What a walk over one tree adds up to."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.branches = 0
        self.leaves = 0
        self.overflow_pages = 0
        self.overflow_values = 0
        self.overflow_bytes = 0
        self.entries = 0
        self.key_bytes = 0
        self.value_bytes = 0
        self.longest_key = 0
        self.longest_value = 0
        self.leaf_fill = 0.0
        self.branch_fill = 0.0
        self.fills = array("Q", bytes(8 * 10))  # leaves by tenths of fill
        self.damaged = 0

    def add(self, visit: Visit) -> None:
        """Count one page or overflow run. O(cells)."""
        if visit.damage:
            self.damaged += 1
            return
        if visit.kind == fmt.OVERFLOW_KIND:
            self.overflow_values += 1
            self.overflow_pages += visit.pages
            self.overflow_bytes += visit.ref.count
            return
        page = visit.page
        assert page is not None
        full = fill(page)
        if visit.level:
            self.branches += 1
            self.branch_fill += full
            return
        self.leaves += 1
        self.leaf_fill += full
        self.fills[max(0, min(int(full * 10), 9))] += 1  # a forged header may say anything
        cells = page.cells
        lengths = list(map(len, page.suffixes))
        values = sizes(page)
        self.entries += cells
        self.key_bytes += sum(lengths) + cells * len(page.prefix)
        self.value_bytes += sum(values)
        self.longest_key = max(self.longest_key, max(lengths) + len(page.prefix))
        self.longest_value = max(self.longest_value, *values)

    def facts(self, page_size: int) -> dict[str, Any]:
        """The sums as a plain dictionary."""
        pages = self.branches + self.leaves + self.overflow_pages
        return {
            "tree": tree_label(self.tree.name),
            "system": self.tree.system,
            "depth": self.tree.descriptor.depth,
            "entries": self.entries,
            "branch_pages": self.branches,
            "leaf_pages": self.leaves,
            "overflow_pages": self.overflow_pages,
            "size": pages * page_size,
            "key_bytes": self.key_bytes,
            "value_bytes": self.value_bytes,
            "longest_key": self.longest_key,
            "longest_value": self.longest_value,
            "overflow_values": self.overflow_values,
            "overflow_bytes": self.overflow_bytes,
            "leaf_fill": self.leaf_fill / self.leaves if self.leaves else None,
            "branch_fill": self.branch_fill / self.branches if self.branches else None,
            "overflow_fill": self.overflow_bytes / (self.overflow_pages * page_size) if self.overflow_pages else None,
            "leaves_by_fill": list(self.fills),
            "damaged_pages": self.damaged,
        }


def leaf_pages(tree: Tree) -> Iterator[Page]:
    """The leaves of a tree in key order; raises at the first that is damaged."""
    for leaf, _, _ in tree.ranges():
        yield leaf.page
