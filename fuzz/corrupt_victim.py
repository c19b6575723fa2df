"""Files to be damaged: about 64 pages with every kind of page, and what lies where in them.

A victim is made by the engine and then taken apart here, by the layouts alone:
which page is of which kind, who refers to it and at which offset, and which keys
lie below it.  So a damaged page can be sealed again up to the meta pages, and a
question can be asked whose way leads through the damage.

    page 17: a leaf of the main tree         links      (5, 3890), (9, 3912)
             below it: b"000120".. b"000141" ancestors  5, 9, meta 0, meta 1

`settled` was closed cleanly: both meta pages name one state, so any answer must
be of that one.  `crashed` was left by a power cut behind two lazy commits: damage
to them gives the synced state before them, by right.  `bomb` has branches all of
whose cells lead to the same child, 40 levels deep: 100 ** 40 entries in 42 pages.
"""

from __future__ import annotations

import functools
import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cowdb import allocation
from cowdb import format as fmt
from cowdb import meta as meta_page
from cowdb.checksum import crc32c
from cowdb.core import cores
from cowdb.database import open_on
from cowdb.testing import MemoryDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.database import Database

__all__ = ["PATH", "Anatomy", "Model", "Victim", "corpus", "everything", "forget", "victim", "victims"]

PATH: Final = "/victim"
PAGE: Final = 4096
_ID: Final = bytes(range(16))
_REFERENCE: Final = fmt.REFERENCE_SIZE
_SMALL_CARRY: Final = 24

Model = dict[str | None, dict[bytes, bytes]]
"""The main tree under None, each named tree under its name; keys in order."""

Place = tuple[str | None, bytes]
"""A tree and a key in it."""


@dataclass
class Anatomy:
    """What lies where in a file of whole pages."""

    page_size: int
    kinds: dict[int, str] = field(default_factory=dict)
    spans: dict[int, int] = field(default_factory=dict)  # first page of an overflow run -> its pages
    owner: dict[int, int] = field(default_factory=dict)  # any page of a run -> the first one
    links: dict[int, set[tuple[int, int]]] = field(default_factory=dict)  # page -> (page, offset) of references to it
    rank: dict[int, int] = field(default_factory=dict)  # children come before parents
    below: dict[int, list[Place]] = field(default_factory=dict)  # page -> some of what lies below it
    used: set[int] = field(default_factory=set)  # pages that the newest state reaches

    def ancestors(self, pages: frozenset[int]) -> list[int]:
        """`pages` and all pages above them, children before parents: the order in which they are sealed."""
        found: set[int] = set()
        stack = [self.owner.get(page, page) for page in pages]
        while stack:
            page = stack.pop()
            if page not in found:
                found.add(page)
                stack += [parent for parent, _ in self.links.get(page, ())]
        return sorted(found, key=lambda page: self.rank.get(page, 0))


@dataclass(frozen=True)
class Victim:
    """A file to be damaged: its bytes, the states that may be found in it by transaction, older images of it."""

    name: str
    raw: bytes
    states: dict[int, Model]
    older: tuple[bytes, ...]
    anatomy: Anatomy

    @property
    def page_size(self) -> int:
        """Bytes a page."""
        return self.anatomy.page_size

    @property
    def pages(self) -> int:
        """Pages of the file."""
        return len(self.raw) // self.anatomy.page_size

    @property
    def newest(self) -> Model:
        """The content of the newest state."""
        return self.states[max(self.states)]

    def places(self, page: int) -> list[Place]:
        """Keys whose way leads through `page`; any keys for a page that leads to none."""
        anatomy = self.anatomy
        return anatomy.below.get(anatomy.owner.get(page, page)) or [(None, next(iter(self.newest[None]), b""))]


def everything(database: Database) -> Model:
    """All that a database holds."""
    with database.read() as snapshot:
        found: Model = {None: dict(snapshot.items())}
        for name in snapshot.trees():
            found[name] = dict(snapshot.tree(name).items())
    return found


def forget(database: Database) -> None:
    """The process is gone: nothing is closed, nothing is written."""
    core, database._core = database._core, None
    if core is not None:
        cores.pop(core.key, None)


# ---------------------------------------------------------------- taking apart


def take_apart(raw: bytes, page_size: int) -> Anatomy:
    """The anatomy of a sound file, from its layouts alone."""
    anatomy = Anatomy(page_size)
    slots: list[tuple[int, int]] = []
    for slot in (0, 1):
        try:
            meta = meta_page.decode(raw[slot * page_size : (slot + 1) * page_size], slot)
        except meta_page.BadMeta:
            continue
        slots.append((meta.transaction, slot))
        anatomy.kinds[slot] = "meta"
        anatomy.rank[slot] = 1000
    for newest, (_, slot) in zip((True, False), sorted(slots, reverse=True), strict=False):
        for tree in ("main", "catalog", "free"):
            at = fmt.META.offset(f"{tree} tree")
            depth = int.from_bytes(_piece(raw, slot, at + _REFERENCE, 2, page_size), "little")
            if depth:
                _walk(raw, anatomy, (slot, at), depth - 1, tree, newest=newest)
    for page in range(2, len(raw) // page_size):
        anatomy.kinds.setdefault(page, "free page")
    return anatomy


def _piece(raw: bytes, page: int, offset: int, length: int, page_size: int) -> bytes:
    return raw[page * page_size + offset : page * page_size + offset + length]


def cells_of(page: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and whole key of each cell of a sound branch or leaf (of a branch: its separator)."""
    header = fmt.PAGE_HEADER.struct.unpack_from(page)
    cells, prefix = header[3], header[6]
    stem = page[fmt.HEADER_SIZE : fmt.HEADER_SIZE + prefix]
    start = fmt.HEADER_SIZE + (prefix + 7 & -8)
    skip = 0 if header[1] == fmt.BRANCH_KIND else fmt.CELL_HEAD_SIZE
    for index in range(cells):
        length, offset = struct.unpack_from("<HH", page, start + 8 * index)
        yield offset, stem + page[offset + skip : offset + skip + length]


def cell_bodies(page: bytes) -> Iterator[int]:
    """Offset of what follows the key in each cell: a value, or a reference."""
    header = fmt.PAGE_HEADER.struct.unpack_from(page)
    start = fmt.HEADER_SIZE + (header[6] + 7 & -8)
    skip = 0 if header[1] == fmt.BRANCH_KIND else fmt.CELL_HEAD_SIZE
    for index in range(header[3]):
        length, offset = struct.unpack_from("<HH", page, start + 8 * index)
        yield offset + skip + length


def _walk(
    raw: bytes, anatomy: Anatomy, link: tuple[int, int], level: int, tree: str, *, newest: bool, name: str | None = None
) -> list[Place]:
    """Note the page behind the reference at `link` (page, offset) and all below it; some keys below it."""
    size = anatomy.page_size
    number = fmt.unpack_reference(_piece(raw, *link, _REFERENCE, size)).number
    seen = number in anatomy.links
    anatomy.links.setdefault(number, set()).add(link)
    if newest:
        anatomy.used.add(number)
    if seen:
        return anatomy.below.get(number, [])
    page = _piece(raw, number, 0, size, size)
    catalog = 100 if tree == "catalog" else 0
    anatomy.rank[number] = catalog + level + 1
    anatomy.kinds[number] = f"{'branch' if level else 'leaf'} of {'a named' if tree == 'named' else 'the ' + tree} tree"
    below: list[Place] = []
    for (offset, key), body in zip(cells_of(page), cell_bodies(page), strict=True):
        if level:
            found = _walk(raw, anatomy, (number, body), level - 1, tree, newest=newest, name=name)
            below += found[:: max(1, len(found) // 3)]
            continue
        if tree in ("main", "named"):
            below.append((name, key))
        info = int.from_bytes(page[offset : offset + 2], "little")
        if info >> fmt.LENGTH_BITS == fmt.OVERFLOW:
            _note_run(page, anatomy, (number, body), (name, key), newest=newest)
        elif tree == "catalog":
            depth = int.from_bytes(page[body + _REFERENCE : body + _REFERENCE + 2], "little")
            if depth:
                found = _walk(raw, anatomy, (number, body), depth - 1, "named", newest=newest, name=key.decode())
                below += found[:3]
    anatomy.below[number] = below
    return below


def _note_run(page: bytes, anatomy: Anatomy, link: tuple[int, int], place: Place, *, newest: bool) -> None:
    """Note the overflow run behind the reference at `link` in `page`."""
    reference = fmt.unpack_reference(page[link[1] : link[1] + _REFERENCE])
    pages = fmt.overflow_pages(reference.count, anatomy.page_size)
    first = reference.number
    anatomy.links.setdefault(first, set()).add(link)
    anatomy.spans[first] = pages
    anatomy.rank[first] = 0
    anatomy.below[first] = [place]
    for each in range(first, first + pages):
        anatomy.owner[each] = first
        anatomy.kinds[each] = "overflow run"
        if newest:
            anatomy.used.add(each)


# ---------------------------------------------------------------- making


def _clock() -> int:
    return 1_700_000_000_000_000_000


def _long_key(number: int) -> bytes:
    """Keys whose separators are long, so that few pages make a deep tree."""
    return b"%02d" % (number // 5) + b"-" * 600 + b"%d" % (number % 5)


def _fill(database: Database, rng: random.Random) -> None:
    with database.write() as transaction:
        for number in range(460):
            transaction[b"%06d" % number] = bytes([number % 251]) * rng.randrange(20, 160)
        for name, count in (("deep", 90), ("tr\u00e4\u00e4", 3), ("gone", 40)):
            tree = transaction.tree(name, create=True)
            for number in range(count):
                tree[_long_key(number)] = b"%d" % number * 9
        transaction.tree("empty", create=True)
        for key, length in ((b"large 0", 5000), (b"large 1", 9000), (b"large 2", 2 * PAGE - fmt.HEADER_SIZE)):
            transaction[key] = key * (length // 7) + bytes(length % 7)
        transaction.tree("deep")[b"zz large"] = b"z" * 4500


def _shake(database: Database, rng: random.Random, round_number: int) -> None:
    """One commit that leaves holes all over the file."""
    with database.write() as transaction:
        keys = list(transaction)
        for key in rng.sample(keys, 5):
            transaction[key] = b"round %d " % round_number * rng.randrange(1, 12)
        del transaction[rng.choice(keys[:400])]
        if round_number % 3 == 0:
            transaction.delete_range(b"%06d" % (20 * round_number), b"%06d" % (20 * round_number + 12))
        if round_number == 1:
            transaction.drop("gone")
        transaction.tree("tr\u00e4\u00e4")[b"round"] = b"%d" % round_number


def _make(*, settled: bool) -> Victim:
    disk = MemoryDisk()
    rng = random.Random(5)
    older: list[bytes] = []
    capacity = fmt.carry_capacity
    # 64 pages have too few holes to fill the carry list: let the engine think that it is short, so that there is a
    # free tree as well.  The file is none the less as good as any.
    allocation.fmt.carry_capacity = lambda _page_size: _SMALL_CARRY  # type: ignore[attr-defined]
    try:
        database = open_on(disk, PATH, page_size=PAGE, clock=_clock, database_id=_ID)
        _fill(database, rng)
        reader = database.read()
        for round_number in range(6):
            older.append(disk.content(PATH))
            _shake(database, rng, round_number)
            if round_number == 2:
                reader.close()
    finally:
        allocation.fmt.carry_capacity = capacity  # type: ignore[attr-defined]
    states: dict[int, Model] = {}
    if not settled:
        database.sync()
        states = {database.info()["transaction"]: everything(database)}
        for number in (1, 2):
            older.append(disk.content(PATH))
            with database.write(durability="lazy") as transaction:
                transaction[b"lazy %d" % number] = b"l" * 50
                transaction[b"large lazy"] = b"%d" % number * 6000
                transaction.tree("deep")[_long_key(7)] = b"lazy"
                del transaction[b"%06d" % (100 + number)]
    states[database.info()["transaction"]] = everything(database)
    pages = database.info()["page_count"]
    if settled:
        database.close()
    raw = disk.content(PATH)[: pages * PAGE]  # without the room to grow in, of which nobody makes anything
    forget(database)
    return Victim("settled" if settled else "crashed", raw, states, tuple(older), take_apart(raw, PAGE))


def _bomb() -> Victim:
    """Branches all of whose cells lead to one child; every checksum holds."""
    page_of: list[bytes] = []
    levels = 40
    below = fmt.NO_PAGE
    for level in range(levels):
        number = 2 + level
        page = bytearray(PAGE)
        cells = 100
        heap = PAGE
        count = min(cells * below.count, fmt.MAX_U48) if level else cells
        for index in range(cells):
            key = b"%04d" % index
            suffix = b"" if level and not index else key
            body = suffix + below.pack() if level else struct.pack("<H", 3) + suffix + b"abc"
            heap -= len(body)
            page[heap : heap + len(body)] = body
            head = int.from_bytes(suffix.ljust(4, b"\0"), "big")
            struct.pack_into("<Q", page, fmt.HEADER_SIZE + 8 * index, head << 32 | heap << 16 | len(suffix))
        kind = fmt.BRANCH_KIND if level else fmt.LEAF_KIND
        fmt.PAGE_HEADER.struct.pack_into(page, 0, 0, kind, level, cells, number, 1, 0, heap, 0, 0)
        checksum = crc32c(memoryview(page)[4:])
        page[:4] = checksum.to_bytes(4, "little")
        page_of.append(bytes(page))
        below = fmt.Reference(number, 1, count, checksum)
    pages = levels + 2
    tree = fmt.Descriptor(below, levels, 20, 20, 0)
    meta = meta_page.Meta(PAGE, _ID, 2, 2, pages, 0, tree, fmt.EMPTY_TREE, fmt.EMPTY_TREE, b"")
    raw = b"".join([meta_page.encode(meta, 0), meta_page.encode(meta, 1), *page_of])
    model: Model = {None: {b"%04d" % index: b"abc" for index in range(100)}}
    anatomy = Anatomy(PAGE)
    for slot in (0, 1):
        anatomy.kinds[slot] = "meta"
        anatomy.rank[slot] = 1000
    for level in range(levels):
        number = 2 + level
        anatomy.kinds[number] = "bomb"
        anatomy.rank[number] = level + 1
        anatomy.below[number] = [(None, b"0050")]
        if level < levels - 1:
            anatomy.links[number] = {(number + 1, body) for body in cell_bodies(page_of[level + 1])}
        else:
            anatomy.links[number] = {(slot, fmt.META.offset("main tree")) for slot in (0, 1)}
    return Victim("bomb", raw, {2: model}, (raw,), anatomy)


@functools.cache
def victim(name: str) -> Victim:
    """The victim of this name: settled, crashed, bomb."""
    if name == "bomb":
        return _bomb()
    if name not in ("settled", "crashed"):
        raise ValueError(f"there is no victim called {name!r}")
    return _make(settled=name == "settled")


def victims() -> list[Victim]:
    """The two sound ones."""
    return [victim("settled"), victim("crashed")]


@functools.cache
def corpus() -> tuple[Victim, ...]:
    """Sound files of every page size: empty, a single entry, values only in overflow runs, many small trees."""
    found = list(victims())
    for page_size in fmt.PAGE_SIZES:
        for name, trees, count, length in (
            ("empty", 0, 0, 0), ("single", 0, 1, 5), ("large", 1, 12, 3 * page_size), ("many", 20, 9, 30),
        ):  # fmt: skip
            disk = MemoryDisk()
            database = open_on(disk, PATH, page_size=page_size, clock=_clock, database_id=_ID)
            with database.write() as transaction:
                for tree in (transaction, *(transaction.tree(f"tree {i}", create=True) for i in range(trees))):
                    for number in range(count):
                        tree[b"%d" % number] = b"v" * (length + number)
            state = {database.info()["transaction"]: everything(database)}
            database.close()
            raw = disk.content(PATH)
            found.append(Victim(f"{name}-{page_size}", raw, state, (raw,), take_apart(raw, page_size)))
    return tuple(found)
