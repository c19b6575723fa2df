"""Files made by hand: a second, plain writer of the format, from `docs/format.md` alone.

It shares no code with the package but the checksum, so it notices when the
layouts in `format.py` and their description part ways.  Pages are written in
the plainest way: full from left to right, the longest prefix, no dead bytes.

    file = Handmade(page_size=4096)
    main = file.tree([(b"a", b"1"), (b"b", b"2" * 9000)], birth=1)
    file.skip(3)                                    # three free pages
    file.commit(1, main=main, named={"users": file.tree([(b"x", b"y")], birth=1)})
    bytes(file.data)                                # or Bytes(file.data), a source for the checker

`patch` changes bytes of a page and seals it again, with every page that refers
to it, up to the meta pages: damage that no checksum shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from cowdb.checksum import crc32c

EMPTY = bytes(64)
META, BRANCH, LEAF, OVERFLOW = 1, 2, 3, 4

Item = tuple[bytes, bytes]
Cell = tuple[bytes, bytes]  # key (or separator), what follows it in the cell


class Bytes:
    """A source for the checker over bytes in memory; it counts what is read."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        self.reads: list[tuple[int, int]] = []

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0, "the checker read outside of the file"
        assert 0 <= length <= 1 << 20, "the checker read too much at once"
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def reference(number: int, birth: int, count: int, checksum: int) -> bytes:
    """The 22 bytes of a reference."""
    parts = ((number, 6), (birth, 6), (count, 6), (checksum, 4))
    return b"".join(value.to_bytes(size, "little") for value, size in parts)


def count_of(ref: bytes) -> int:
    """The count in a reference."""
    return int.from_bytes(ref[12:18], "little")


def common(left: bytes, right: bytes) -> bytes:
    """The longest prefix of both."""
    length = next((i for i, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), None)
    return left[: min(len(left), len(right)) if length is None else length]


def divide(left: bytes, right: bytes) -> bytes:
    """The shortest key above `left` that is not above `right`."""
    return right[: len(common(left, right)) + 1]


def slotted(size: int, cells: Sequence[Cell], *, leaf: bool) -> bytes | None:
    """A branch or leaf page from byte 24 on, or None if the cells do not fit; a leaf's cells begin with two bytes."""
    keys = [key for key, _ in (cells if leaf else cells[1:])]
    prefix = common(keys[0], keys[-1]) if keys else b""
    suffixes = [key[len(prefix) :] for key, _ in cells]
    if not leaf:
        suffixes[0] = b""
    page = bytearray(size)
    page[32 : 32 + len(prefix)] = prefix
    at = 32 + (len(prefix) + 7) // 8 * 8
    heap = size
    for suffix, (_, rest) in zip(suffixes, cells, strict=True):
        body = rest[:2] + suffix + rest[2:] if leaf else suffix + rest
        heap -= len(body)
        if heap < at + 8:
            return None
        page[heap : heap + len(body)] = body
        head = int.from_bytes(suffix[:4].ljust(4, b"\0"), "big")
        struct.pack_into("<Q", page, at, head << 32 | heap << 16 | len(suffix))
        at += 8
    struct.pack_into("<HHHH", page, 24, len(prefix), heap, 0, 0)
    return bytes(page[24:])


class Handmade:
    """A database file in the making."""

    def __init__(self, page_size: int = 8192, database_id: bytes = bytes(range(16))) -> None:
        self.page_size = page_size
        self.database_id = database_id
        self.data = bytearray(2 * page_size)
        self.pages_of: dict[bytes, set[int]] = {EMPTY: set()}
        self._parents: dict[int, set[tuple[int, int]]] = {}  # page -> (page, offset of the reference to it in there)
        self._spans: dict[int, int] = {}  # first page of an overflow run -> its pages
        self._content: dict[bytes, bytes] = {}  # reference -> the page's bytes from 24 on, or the value
        self._building: set[int] = set()

    # ------------------------------------------------------------ looking

    @property
    def page_count(self) -> int:
        return len(self.data) // self.page_size

    def page(self, number: int) -> bytes:
        """The bytes of a page."""
        return bytes(self.data[number * self.page_size : (number + 1) * self.page_size])

    def pages(self, kind: int, level: int = 0) -> list[int]:
        """The pages of a kind and level, in file order (the middle of an overflow run may look like one)."""
        return [n for n in range(2, self.page_count) if self.page(n)[4:6] == bytes((kind, level))]

    def slot(self, number: int, index: int) -> tuple[int, int, int, int]:
        """Slot `index` of a page: where it lies in the page, its head, its cell's offset, the suffix length."""
        page = self.page(number)
        at = 32 + (int.from_bytes(page[24:26], "little") + 7) // 8 * 8 + 8 * index
        slot = int.from_bytes(page[at : at + 8], "little")
        return at, slot >> 32, slot >> 16 & 0xFFFF, slot & 0xFFFF

    # ------------------------------------------------------------ trees

    def skip(self, pages: int) -> int:
        """Leave pages free; return the first."""
        first = self.page_count
        self.data += bytes(pages * self.page_size)
        return first

    def tree(self, items: Iterable[Item], birth: int, *, fanout: int = 1 << 16, share: bytes = EMPTY) -> bytes:
        """Write a tree and return its descriptor; pages equal to some of the tree `share` are not written again."""
        items = sorted(items)
        if not items:
            return EMPTY
        self._building = set()
        old = {self._content[ref]: ref for ref in self._content if self._number(ref) in self.pages_of[share]}
        cells = [(key, self._payload(value, birth, old)) for key, value in items]
        groups = self._split(cells, fanout, leaf=True)
        level, kinds = [], [0, 0]
        for index, group in enumerate(groups):
            low = divide(groups[index - 1][-1][0], group[0][0]) if index else b""
            level.append((low, self._write(LEAF, 0, birth, group, len(group), old)))
        kinds[1] = len(level)
        depth = 1
        while len(level) > 1:
            groups = self._split(level, fanout, leaf=False)
            level = []
            for group in groups:
                count = sum(count_of(ref) for _, ref in group)
                level.append((group[0][0], self._write(BRANCH, depth, birth, group, count, old)))
            kinds[0] += len(level)
            depth += 1
        overflow = len(self._building) - sum(kinds)
        descriptor = level[0][1] + struct.pack("<HQQQ", depth, *kinds, overflow) + bytes(16)
        self.pages_of[descriptor] = self._building
        return descriptor

    def _payload(self, value: bytes, birth: int, old: Mapping[bytes, bytes]) -> bytes:
        if len(value) <= self.page_size // 4:
            return struct.pack("<H", len(value)) + value
        ref = old.get(value)
        if ref is None:
            pages = -(-(32 + len(value)) // self.page_size)
            number = self.skip(pages)
            self._spans[number] = pages
            start = number * self.page_size
            struct.pack_into("<IBBHQQHHHH", self.data, start, 0, OVERFLOW, 0, 0, number, birth, 0, 0, 0, 0)
            self.data[start + 32 : start + 32 + len(value)] = value
            ref = reference(number, birth, len(value), self._seal(number))
            self._content[ref] = value
        number = self._number(ref)
        self._building.update(range(number, number + self._spans[number]))
        return struct.pack("<H", 1 << 14 | 22) + ref

    def _split(self, cells: list[Cell], fanout: int, *, leaf: bool) -> list[list[Cell]]:
        """Cells in as few even groups as fit into pages."""
        total = sum(10 + len(key) + len(rest) for key, rest in cells)
        pages = max(-(-len(cells) // fanout), total // (2 * self.page_size), 1)
        while True:
            cuts = [len(cells) * i // pages for i in range(pages + 1)]
            groups = [cells[low:high] for low, high in pairwise(cuts)]
            if all(slotted(self.page_size, group, leaf=leaf) for group in groups):
                return groups
            pages += 1 + pages // 50

    def _write(
        self, kind: int, level: int, birth: int, cells: list[Cell], count: int, old: Mapping[bytes, bytes]
    ) -> bytes:
        content = slotted(self.page_size, cells, leaf=kind == LEAF)
        assert content is not None, "it has been fitted"
        ref = old.get(content)
        if ref is None:
            number = self.skip(1)
            start = number * self.page_size
            struct.pack_into("<IBBHQQ", self.data, start, 0, kind, level, len(cells), number, birth)
            self.data[start + 24 : start + self.page_size] = content
            for index, (_, rest) in enumerate(cells):
                _, _, cell, length = self.slot(number, index)
                if kind == BRANCH:
                    self._link(rest, number, cell + length)
                elif rest[:2] == struct.pack("<H", 1 << 14 | 22):
                    self._link(rest[2:], number, cell + 2 + length)
            ref = reference(number, birth, count, self._seal(number))
            self._content[ref] = content
        self._building.add(self._number(ref))
        if kind == BRANCH:
            for _, child in cells:  # pages of shared subtrees are in the set already; leaves bring their runs
                self._building.add(self._number(child))
        return ref

    # ------------------------------------------------------------ commits

    def commit(
        self,
        transaction: int,
        *,
        durable: int | None = None,
        slot: int | None = None,
        main: bytes = EMPTY,
        named: Mapping[str, bytes] | None = None,
        free_tree: bool = False,
    ) -> None:
        """Write a meta page: what it does not reach is carried, or lies in a free tree."""
        slot = transaction % 2 if slot is None else slot
        durable = max(transaction - 1, 0) if durable is None else durable
        named = {} if named is None else named
        catalog = self.tree([(name.encode(errors="surrogateescape"), raw) for name, raw in named.items()], transaction)
        taken = set().union(*(self.pages_of[tree] for tree in (main, catalog, *named.values())))
        for leaf in self.pages_of[catalog]:
            page = self.page(leaf)
            for raw in named.values():
                if page[4] == LEAF and raw != EMPTY and (at := page.find(raw)) >= 0:
                    self._link(raw[:22], leaf, at)
        runs: list[list[int]] = []
        for number in range(2, self.page_count):
            if number in taken:
                continue
            if runs and runs[-1][0] + runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1, 0, transaction])
        records, carried = runs if free_tree else [], [] if free_tree else runs
        step = self.page_size // 4 // 32
        free = self.tree(
            [
                (
                    struct.pack(">QQ", transaction, at),
                    b"".join(struct.pack("<4Q", *run) for run in records[at : at + step]),
                )
                for at in range(0, len(records), step)
            ],
            transaction,
        )
        body = struct.pack("<IBBHQQHHHH", 0, META, 0, 0, slot, transaction, 0, 0, 0, 0)
        body += b"\x89COW\r\n\x1a\n" + struct.pack("<HHIQQ", 1, 0, self.page_size, 0, 0) + self.database_id
        body += struct.pack("<QQQQ", transaction, durable, self.page_count, 1_000_000_000 * transaction)
        for tree in (main, catalog, free):
            self._link(tree[:22], slot, len(body))
            body += tree
        body += struct.pack("<Q", len(carried)) + bytes(24)
        body += b"".join(struct.pack("<4Q", *run) for run in carried)
        assert len(body) <= self.page_size, "too many runs to carry them"
        self.data[slot * self.page_size : (slot + 1) * self.page_size] = body.ljust(self.page_size, b"\0")
        self._seal(slot)

    # ------------------------------------------------------------ checksums

    @staticmethod
    def _number(ref: bytes) -> int:
        return int.from_bytes(ref[:6], "little")

    def _link(self, ref: bytes, page: int, offset: int) -> None:
        if self._number(ref):
            self._parents.setdefault(self._number(ref), set()).add((page, offset))

    def _seal(self, number: int) -> int:
        start = number * self.page_size
        stop = start + self._spans.get(number, 1) * self.page_size
        checksum = crc32c(bytes(self.data[start + 4 : stop]))
        self.data[start : start + 4] = checksum.to_bytes(4, "little")
        return checksum

    def patch(self, number: int, offset: int, raw: bytes) -> None:
        """Overwrite bytes of a page and seal all again: only the sense is damaged, no checksum shows it."""
        start = number * self.page_size + offset
        self.data[start : start + len(raw)] = raw
        self.reseal(number)

    def edit(self, number: int, offset: int, code: str, change: Callable[[int], int]) -> None:
        """Change one integer, of a struct code, in a page and seal all again."""
        (old,) = struct.unpack_from("<" + code, self.data, number * self.page_size + offset)
        self.patch(number, offset, struct.pack("<" + code, change(old)))

    def reseal(self, number: int) -> None:
        """Put the right checksum into a page and into all references to it, up to the meta pages."""
        checksum = self._seal(number)
        for parent, offset in self._parents.get(number, ()):
            at = parent * self.page_size + offset + 18
            self.data[at : at + 4] = checksum.to_bytes(4, "little")
            self.reseal(parent)


def simple(items: Iterable[Item], page_size: int = 8192) -> Handmade:
    """A file with one commit, in slot 1, of a main tree; slot 0 holds the empty state before it."""
    file = Handmade(page_size)
    file.commit(0)
    file.commit(1, main=file.tree(items, 1))
    return file
