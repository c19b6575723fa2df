r"""Looking into a file from beside the engine: one state of it, page by page, with nothing trusted.

The engine's readers look through a mapping and keep what they verified.  This
module is for tools: it reads each page with one `read` call, verifies it
against its reference (I3), takes it apart with every bound checked (I10), and
only then uses it.  It shares format, page, meta and checksum with the engine,
and the page judge with the checker.

    slots(source) --> Slot, Slot        both meta pages, or why they cannot be read
    State(source, meta)                 one state: its trees, its free runs
      .tree(name) --> Tree              get, items, keys, rank, count; a path to a key
      .walk(tree) --> Visit, Visit...   every page once, damaged ones too

`Tree` raises `CorruptionError` at the first page that does not verify.  `walk`
goes on behind damage and says what it met: it never enters a page twice, so
cycles end, and it keeps one byte of memory a page.

A state may be read only while its pages stay as they are: while its snapshot is
pinned, while the writer lock is held, or when nobody else has the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError
from cowdb.lookup import Tree, cell, child_bounds, references, separators
from cowdb.pagecheck import Bounds, Page, take_apart
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.meta import Meta

__all__ = ["FreeRun", "Slot", "Source", "State", "Visit", "slots"]

_READ: Final = 1 << 20
_KEPT: Final = 256
_MAIN: Final = "the main tree"


class Source(Protocol):
    """What is asked of a data file: its size and its bytes."""

    def size(self) -> int:
        """Bytes of the file."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; fewer than `length` at the end of the file."""


# ---------------------------------------------------------------- meta pages


class Slot(NamedTuple):
    """A meta slot: its number, where it lies, its bytes, the meta if it can be read, else why not."""

    number: int
    offset: int
    raw: bytes
    meta: Meta | None
    reason: str
    unknown: bool
    """True if it is whole, but of a format or with a feature that this code does not know."""


def slots(source: Source) -> tuple[Slot, Slot]:
    """Both meta slots, whatever is in them. Never raises but what `source` raises."""
    first = _slot(source, 0, 0)
    sizes = fmt.PAGE_SIZES if first.meta is None else (first.meta.page_size,)
    # Below the second meta page there is only the first, so the smallest page size that fits is the right one.
    second = None
    for size in sizes:
        found = _slot(source, 1, size)
        if found.meta is not None or found.unknown:
            return first, found
        second = second or found
    assert second is not None
    return first, second


def _slot(source: Source, number: int, offset: int) -> Slot:
    raw = source.read(offset, fmt.PAGE_SIZES[-1])
    try:
        meta = metas.decode(raw, number)
    except metas.UnknownFormat as error:
        return Slot(number, offset, raw, None, str(error), unknown=True)
    except metas.BadMeta as error:
        return Slot(number, offset, raw, None, str(error), unknown=False)
    if number and meta.page_size != offset:
        return Slot(
            number, offset, raw, None, f"it names a page size of {meta.page_size}, but lies at {offset}", unknown=False
        )
    return Slot(number, offset, raw[: meta.page_size], meta, "", unknown=False)


# ---------------------------------------------------------------- one state


class FreeRun(NamedTuple):
    """A run of free pages, and whether the carry list (else the free tree) has it."""

    start: int
    length: int
    birth: int
    freed: int
    carried: bool


class Visit(NamedTuple):
    """What a walk met: a page of a tree, or an overflow run, whole or not.

    `parent` is the page that refers to it, 0 for a meta page.  `page` is None
    for an overflow run and for what is damaged; then `damage` says why.
    """

    tree: str | None
    kind: int
    ref: fmt.Reference
    level: int
    pages: int
    parent: int
    bounds: Bounds
    page: Page | None
    damage: str


class _Kid(NamedTuple):
    ref: fmt.Reference
    bounds: Bounds


class State:
    """One committed state of a file, to be read from `source`."""

    def __init__(self, source: Source, meta: Meta) -> None:
        self.source = source
        self.meta = meta
        self.page_size: Final = meta.page_size
        self._branches: dict[tuple[fmt.Reference, Bounds, int], tuple[Page, list[fmt.Reference]]] = {}

    # ------------------------------------------------------------ trees

    @property
    def main(self) -> Tree:
        """The main tree."""
        return Tree(self, None, self.meta.main, self.meta.transaction)

    @property
    def catalog(self) -> Tree:
        """The tree of named trees."""
        return Tree(self, "the catalog", self.meta.catalog, self.meta.transaction, system=True)

    @property
    def free(self) -> Tree:
        """The tree of free pages."""
        return Tree(self, "the free tree", self.meta.free, self.meta.transaction, system=True)

    def names(self) -> list[str]:
        """The names of the named trees, in order. O(named trees)."""
        return [_name(key) for key in self.catalog.keys()]  # noqa: SIM118 - it is no mapping

    def trees(self) -> Iterator[Tree]:
        """The main tree, then the named ones in order."""
        yield self.main
        for leaf, entries in self.catalog.leaves():
            for key, raw in entries:
                yield self.named(key, raw, leaf.ref.birth)

    def tree(self, name: str | None = None) -> Tree | None:
        """The tree called `name`, or the main tree; None if there is none of that name. O(log trees)."""
        if name is None:
            return self.main
        key = name.encode(errors="surrogateescape")
        steps = self.catalog.path(key) if key else []
        if not steps or not self.catalog.at(steps[-1], key):
            return None
        return self.named(key, self.catalog.value_at(steps[-1]), steps[-1].ref.birth)

    def named(self, key: bytes, raw: bytes, limit: int) -> Tree:
        """The tree of a record in the catalog, in a leaf born in `limit`; raises `CorruptionError`."""
        name = _name(key)
        if len(raw) != fmt.DESCRIPTOR_SIZE:
            raise CorruptionError(-1, f"the catalog entry of {name!r} is no tree descriptor")
        descriptor = fmt.unpack_descriptor(raw)
        try:
            metas.check_descriptor(descriptor, repr(name), self.meta.transaction, self.meta.page_count)
        except metas.BadMeta as error:
            raise CorruptionError(-1, str(error)) from None
        return Tree(self, name, descriptor, limit)

    def free_runs(self) -> Iterator[FreeRun]:
        """Every free run: of the carry list, then of the free tree. O(free runs)."""
        for run in self.meta.carried:
            yield FreeRun(*run, carried=True)
        for _, entries in self.free.leaves():
            for _, raw in entries:
                runs, rest = divmod(len(raw), fmt.FREE_RUN.size)
                if rest or not 1 <= runs <= fmt.runs_per_record(self.page_size):
                    raise CorruptionError(-1, f"the free tree: a value of {len(raw)} bytes")
                for start, length, birth, freed in fmt.unpack_runs(raw):
                    if not fmt.FIRST_DATA_PAGE <= start < start + length <= self.meta.page_count:
                        raise CorruptionError(-1, f"the free tree: a run of {length} pages at {start}")
                    yield FreeRun(start, length, birth, freed, carried=False)

    # ------------------------------------------------------------ pages

    def raw_page(self, ref: fmt.Reference) -> bytes:
        """The bytes of a branch or leaf, verified (I3); raises `CorruptionError`."""
        number, size = ref.number, self.page_size
        if not fmt.FIRST_DATA_PAGE <= number < self.meta.page_count:
            raise CorruptionError(number, f"a reference leads outside the {self.meta.page_count} pages of this state")
        raw = self.source.read(number * size, size)
        if len(raw) < size:
            raise CorruptionError(number, "the file ends before it")
        _verify(ref, raw, crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE :]))
        return raw

    def page(self, ref: fmt.Reference, bounds: Bounds, limit: int) -> Page:
        """A branch or leaf, verified and taken apart; raises `CorruptionError`. O(page size)."""
        raw = self.raw_page(ref)
        number = ref.number
        if ref.birth > limit:
            raise CorruptionError(number, f"it was born in {ref.birth}, after {limit}, when it was referred to (I4)")
        kind, level = raw[4], raw[5]
        if level != bounds.level or kind != (fmt.BRANCH_KIND if bounds.level else fmt.LEAF_KIND):
            raise CorruptionError(number, f"kind {kind} level {level} where level {bounds.level} belongs")

        def refuse(invariant: str, message: str) -> NoReturn:
            raise CorruptionError(number, f"{message} ({invariant})")

        page = take_apart(raw, bounds, refuse)
        assert page is not None  # else it has complained
        return page

    def branch(self, ref: fmt.Reference, bounds: Bounds, limit: int) -> tuple[Page, list[fmt.Reference]]:
        """A branch and the references to its children; the last ones used are kept."""
        found = self._branches.get((ref, bounds, limit))
        if found is None:
            page = self.page(ref, bounds, limit)
            if len(self._branches) >= _KEPT:
                self._branches.clear()
            found = self._branches[ref, bounds, limit] = (page, references(page))
        return found

    def value(self, page: Page, index: int) -> bytes:
        """The value of cell `index` of a leaf; of an overflow value all its bytes, verified. O(length)."""
        kind, start, stop = cell(page, index)
        raw = page.raw[start:stop]
        if kind == fmt.INLINE:
            return raw
        return self.overflow(fmt.unpack_reference(raw), page.birth)

    def overflow(self, ref: fmt.Reference, limit: int) -> bytes:
        """The value in an overflow run, verified; raises `CorruptionError`. O(length)."""
        pieces = list(self.overflow_pieces(ref, limit))
        return b"".join(pieces)

    def overflow_pieces(self, ref: fmt.Reference, limit: int) -> Iterator[bytes]:
        """The value in an overflow run, piece by piece; believe them only when all have come (I3)."""
        number, size = ref.number, self.page_size
        pages = fmt.overflow_pages(ref.count, size)
        there = min(self.meta.page_count, self.source.size() // size)
        if not fmt.FIRST_DATA_PAGE <= number <= there - pages:
            raise CorruptionError(number, f"an overflow run of {pages} pages leads outside the {there} pages there are")
        if ref.birth > limit:
            raise CorruptionError(number, f"it was born in {ref.birth}, after {limit}, when it was referred to (I4)")
        at, end, left = number * size, (number + pages) * size, ref.count
        checksum, header, skip = 0, b"", fmt.HEADER_SIZE
        while at < end:
            block = self.source.read(at, min(_READ, end - at))
            if not block or (not header and len(block) < size):
                raise CorruptionError(number, "the file ends before the end of its overflow run")
            checksum = crc32c(memoryview(block)[0 if header else fmt.CHECKSUM_SIZE :], checksum)
            header = header or block[: fmt.HEADER_SIZE]
            at += len(block)
            piece = block[skip : skip + left]
            skip = 0
            left -= len(piece)
            if at >= end:
                _verify(ref, header, checksum)
                if header[4] != fmt.OVERFLOW_KIND:
                    raise CorruptionError(number, f"kind {header[4]} where an overflow run belongs")
            yield piece

    def runs_of(self, page: Page) -> list[fmt.Reference]:
        """The references to overflow runs in a leaf; raises `CorruptionError`. O(cells)."""
        if page.inline:
            return []
        found = [cell(page, index) for index in range(page.cells)]
        return [fmt.unpack_reference(page.raw[start:stop]) for kind, start, stop in found if kind == fmt.OVERFLOW]

    # ------------------------------------------------------------ walking

    def walk(
        self, tree: Tree, seen: PageMap | None = None, *, values: bool = False, since: int = -1
    ) -> Iterator[Visit]:
        """Every page of a tree, from the root down, in key order; behind damage it goes on.

        Overflow runs come after their leaf; with `values` they are read and
        verified, else only their header is looked at.  Pages born up to
        transaction `since` are not entered.  `seen` carries the pages met from
        one walk of this state to the next.
        O(pages) and one byte of memory a page.
        """
        descriptor = tree.descriptor
        if not descriptor.depth:
            return
        seen = PageMap() if seen is None else seen
        stack = [(_Kid(descriptor.root, Bounds(descriptor.depth - 1, b"", None)), tree.limit, 0)]
        while stack:
            (ref, bounds), limit, parent = stack.pop()
            kind = fmt.BRANCH_KIND if bounds.level else fmt.LEAF_KIND
            page, damage = None, self._met(seen, ref, 1)
            kids: list[_Kid] = []
            if not damage:
                try:
                    page = self.page(ref, bounds, limit)
                    kids = _kids(page, bounds) if bounds.level else []
                except CorruptionError as error:
                    page, damage = None, error.reason
            yield Visit(tree.name, kind, ref, bounds.level, 1, parent, bounds, page, damage)
            if page is None:
                continue
            stack.extend((kid, page.birth, ref.number) for kid in reversed(kids) if kid.ref.birth > since)
            if not bounds.level:
                runs = self._runs(tree, page, ref, bounds, seen, values=values)
                yield from (run for run in runs if run.ref.birth > since)

    def _runs(
        self, tree: Tree, page: Page, leaf: fmt.Reference, bounds: Bounds, seen: PageMap, *, values: bool
    ) -> Iterator[Visit]:
        """The overflow runs of a leaf."""
        if page.inline:
            return
        for index in range(page.cells):
            try:
                kind, start, stop = cell(page, index)
            except CorruptionError as error:
                yield Visit(tree.name, fmt.LEAF_KIND, leaf, 0, 0, leaf.number, bounds, None, error.reason)
                continue
            if kind == fmt.INLINE:
                continue
            ref = fmt.unpack_reference(page.raw[start:stop])
            pages = fmt.overflow_pages(ref.count, self.page_size)
            damage = self._met(seen, ref, pages)
            if not damage:
                try:
                    if values:
                        for _ in self.overflow_pieces(ref, page.birth):
                            pass
                    else:
                        self._look(ref)
                except CorruptionError as error:
                    damage = error.reason
            yield Visit(tree.name, fmt.OVERFLOW_KIND, ref, 0, pages, leaf.number, bounds, None, damage)

    def _look(self, ref: fmt.Reference) -> None:
        """The header of an overflow run is what its reference says; the rest of it is not read."""
        raw = self.source.read(ref.number * self.page_size, fmt.HEADER_SIZE)
        if len(raw) < fmt.HEADER_SIZE:
            raise CorruptionError(ref.number, "the file ends before it")
        _verify(ref, raw, ref.checksum)

    def _met(self, seen: PageMap, ref: fmt.Reference, pages: int) -> str:
        """Mark pages as met; why not, if they are outside or were met before."""
        number = ref.number
        there = min(self.meta.page_count, self.source.size() // self.page_size)
        if not fmt.FIRST_DATA_PAGE <= number <= there - pages:
            return f"{pages} page(s) from {number} on are not among the {there} that are there"
        if seen.first_marked(number, number + pages) < number + pages:
            return "another reference leads to it as well (I5)"
        seen.mark(number, pages, 1)
        return ""


# ---------------------------------------------------------------- pieces


def _kids(page: Page, bounds: Bounds) -> list[_Kid]:
    keys = separators(page)
    return [_Kid(ref, child_bounds(bounds, keys, index)) for index, ref in enumerate(references(page))]


def _verify(ref: fmt.Reference, raw: bytes, checksum: int) -> None:
    """I3: number, birth and checksum of a page equal those of the reference to it."""
    stored, _, _, _, number, birth, *_ = fmt.PAGE_HEADER.struct.unpack_from(raw)
    if stored != checksum:
        raise CorruptionError(ref.number, f"its checksum is {checksum:#010x}, the page says {stored:#010x}")
    if number != ref.number:
        raise CorruptionError(ref.number, f"it was written for page {number}")
    if birth != ref.birth:
        raise CorruptionError(ref.number, f"it was born in {birth}, the reference says {ref.birth}")
    if stored != ref.checksum:
        raise CorruptionError(ref.number, f"its checksum is {stored:#010x}, the reference says {ref.checksum:#010x}")


def _name(key: bytes) -> str:
    """The name of a tree; what is not UTF-8 is kept as Python keeps it in a path."""
    if not key:
        raise CorruptionError(-1, "a tree has no name")
    return key.decode(errors="surrogateescape")
