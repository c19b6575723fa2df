"""What the tests of the kernel share: a tree without a database around it, and a database on a disk in memory.

`Kernel` stands in for the pager: it gives out page numbers one after the other and never uses one again.  `audit` looks
at every page of a tree that is being changed, dirty and clean, and gives its entries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cowdb
from cowdb import format as fmt
from cowdb.database import open_on
from cowdb.kernel import Changes, Page, Reader, Space, Writer
from cowdb.sealed import Sealed
from cowdb.testing import MemoryDisk

Item = tuple[bytes, bytes]


def met(tree: Reader) -> list[int]:
    """The levels, from the top, of the clean pages that the mapping of `tree` has met since it was made."""
    space = tree.open_space()
    headers = (
        fmt.PAGE_HEADER.struct.unpack_from(space.data, number * space.page_size) for number in range(space.pages)
    )
    return sorted((header[2] for header, birth in zip(headers, space.verified, strict=True) if birth), reverse=True)


class Kernel:
    """An image of a file with one tree in it."""

    def __init__(self, page_size: int = 4096) -> None:
        self.page_size = page_size
        self.image = bytearray(2 * page_size)
        self.descriptor = fmt.EMPTY_TREE
        self.birth = 0

    def space(self) -> Space:
        return Space(bytes(self.image), self.page_size)

    def reader(self) -> Reader:
        return Reader(self.space(), self.descriptor)

    def writer(self) -> Writer:
        """The next transaction's writer; nothing is kept of it without `seal`."""
        return Writer(self.space(), self.descriptor, Changes(self.birth + 1, 1 << 40, lambda: None))

    def seal(self, writer: Writer) -> fmt.Descriptor:
        """Append the dirty pages to the image; they are the tree from now on."""
        size = self.page_size
        pages, runs = writer.dirty_pages()
        first = len(self.image) // size
        places: dict[int, list[int]] = {}
        at = first + pages
        for length in runs:
            places.setdefault(length, []).append(at)
            at += length
        self.image += bytes((at - first) * size)
        numbers = iter(range(first, first + pages))
        sealed = Sealed()
        self.descriptor = writer.seal(numbers, lambda length: places[length].pop(), sealed)
        for start, length, buffers in sealed.runs(size):
            self.image[start * size : (start + length) * size] = b"".join(map(bytes, buffers))
        self.birth += 1
        assert next(numbers, None) is None, "the seal wrote fewer pages than it announced"
        assert not any(places.values())
        assert len(self.image) == at * size
        return self.descriptor

    def put(self, items: Any) -> Writer:
        """Store `items` in one transaction; the writer, sealed."""
        writer = self.writer()
        writer.update(items)
        self.seal(writer)
        return writer


def audit(tree: Reader) -> list[Item]:
    """The entries of a tree, after a look at the shape of each of its pages (I6, I7) and at the counts of pages."""
    branches = leaves = overflow = 0
    items: list[Item] = []
    size = tree.open_space().page_size

    def walk(page: Page, level: int, low: bytes, high: bytes | None, count: int | None) -> int:
        nonlocal branches, leaves, overflow
        assert page.level == level
        assert count is None or page.kids is None or page.count == count
        slots_end = page.start * 8 - page.at + 8 * page.cells
        assert 32 <= slots_end <= page.heap <= size
        raw = bytes(page.data[page.at : page.at + size])
        assert not any(raw[slots_end : page.heap]), "the gap is zero"
        keys = [page.key(index) for index in range(page.cells)]
        assert keys == sorted(set(keys)), "keys rise strictly (I7)"
        held = keys[1:] if level else keys
        assert all(low <= key and (high is None or key < high) for key in held)
        if level:
            branches += 1
            assert page.cells >= 2, "a branch leads to at least two pages"
            total = 0
            for index in range(page.cells):
                below = keys[index] if index else low
                above = keys[index + 1] if index + 1 < page.cells else high
                wanted = page.child_count(index)
                found = walk(tree.child(page, index), level - 1, below, above, wanted)
                assert found == wanted, "counts are true (I6)"
                total += found
        else:
            leaves += 1
            total = page.cells
            assert total
            for index, key in enumerate(keys):
                info, payload = page.payload(index)
                value = tree.value(info, payload)
                if info >> fmt.LENGTH_BITS:
                    overflow += fmt.overflow_pages(len(value), size)
                items.append((key, value))
        return total

    root = tree.root_page()
    if root is None:
        assert tree.depth == 0
    else:
        assert tree.depth == root.level + 1
        assert walk(root, root.level, b"", None, None) == len(tree) == len(items)
    if isinstance(tree, Writer):
        assert (tree.branch_pages, tree.leaf_pages, tree.overflow_pages) == (branches, leaves, overflow)
    return items


@contextlib.contextmanager
def database(page_size: int = 4096, *, disk: MemoryDisk | None = None, **options: Any) -> Iterator[cowdb.Database]:
    """A database in memory; it must pass the checker at the end, and again after it was closed and opened."""
    disk = MemoryDisk() if disk is None else disk
    with open_on(disk, "/db", page_size=page_size, **options) as db:
        yield db
        assert db.check() == []
    with open_on(disk, "/db", page_size=page_size, **options) as db:
        assert db.check() == []
    disk.check_mappings()


def numbered(count: int, width: int = 20) -> list[Item]:
    """`count` items in key order."""
    return [(b"key%08d" % number, b"v" * width) for number in range(count)]


def far_items(count: int, width: int = 900) -> list[Item]:
    """Items in order whose separators are as long as keys and share no prefix: every branch has a few children only.

    With pages of 4096 bytes two of them fill a leaf, one key ending in 1 and the next one, of another stem, in 0.
    """
    stem = b"x" * 930
    return [(b"%03d" % ((at + 1) // 2) + stem + b"%d" % ((at + 1) % 2), b"v" * width) for at in range(count)]


def damage(kernel: Kernel, number: int) -> bytes:
    """Flip bits of a page; the image as it was."""
    good = bytes(kernel.image)
    for offset in (100, kernel.page_size - 1):
        kernel.image[number * kernel.page_size + offset] ^= 1
    return good


def heal(writer: Writer, good: bytes) -> None:
    """Let `writer` look at an undamaged image, so that all of its tree can be audited."""
    space = writer.open_space()
    writer.space = Space(good, space.page_size, before=space)
