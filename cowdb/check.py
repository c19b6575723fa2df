r"""The checker: reads a whole file, trusts nothing, and names what is wrong.

It shares the layouts, the meta page and the checksum with the engine and no
more, so a bug of the engine cannot hide itself here.  It reads through the
storage protocol alone, never through a mapping, and computes no address,
length or count before it is bounds-checked (I10).

    slot 0   slot 1            both metas that decode, newest first
       \       |
        main, catalog, free    a walk from each root down: every page against
          /  |  \              the reference that led to it (I3, I4, I6, I7)
        ...................    a map of the file: each page once (I5)

Every rule is local.  A page is judged by its reference, its level and the two
separators around it; the entries in a reference must equal the cells of its
leaf, or the sum over the references of its branch.  So no walk has to carry
results upwards, its stack is bounded by depth times fan-out, and it needs one
byte of memory a page.  A page met twice is reported and not entered again, so
cycles end.

Which states must be whole?  The newest meta N, always.  The other one, O, if
its transaction is not below N's `durable` (its pages are pinned then, P6), or
if N itself fails the rule of `durable`.  Else its pages may be in use again
and only its meta page is checked.  Leaves that both states share are read once.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cowdb import format as fmt
from cowdb import meta as metas
from cowdb.checksum import crc32c
from cowdb.findings import MAX_FINDINGS, Enough, Finding, Report
from cowdb.pagecheck import ZEROS, Bounds, Complain, Page, check_heap, sound_alike, take_apart
from cowdb.pagemap import PageMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["MAX_FINDINGS", "Finding", "Source", "check"]

_READ: Final = 1 << 20  # bytes read at once; a multiple of every page size
_PLAIN: Final = 1  # mark in the map of pages: reached
_LEADS_ON: Final = 2  # reached, and a leaf with overflow values
_LOW_BITS: Final = 0xFFFFFFFF  # ids with none of these are never given out: readers take them for "not met yet"

_KINDS: Final = {
    fmt.META_KIND: "a meta page",
    fmt.BRANCH_KIND: "a branch",
    fmt.LEAF_KIND: "a leaf",
    fmt.OVERFLOW_KIND: "an overflow run",
}


class Source(Protocol):
    """What the checker asks of a data file: its size and its bytes."""

    def size(self) -> int:
        """Bytes of the file."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`; fewer than `length` at the end of the file."""


def check(
    storage: Source, *, progress: Callable[[int, int], None] | None = None, only: int | None = None
) -> list[Finding]:
    """Check the whole file and return what is wrong with it, an empty list if nothing is.

    Nobody may commit meanwhile (hold the writer lock).  `only` names the
    transaction of the one state to look at: where pages were written since the
    newest commit, or may have been before a crash, the other state may be in
    pieces by right.  `progress` is called with (pages done, pages in all) about
    every 1,000 pages and once at the end; the second number may grow.

    At most `MAX_FINDINGS` + 1 findings.  O(file size) time, one byte of memory
    a page.  Raises nothing but what `storage` or `progress` raises.
    """
    report = Report(progress)
    with contextlib.suppress(Enough):
        _check_file(storage, report, only)
    report.finish()
    return report.findings


# ---------------------------------------------------------------- metas


def _check_file(storage: Source, report: Report, only: int | None) -> None:
    found = _read_metas(storage, report if only is None else Report(None))
    if only is not None:
        wanted = [(slot, meta) for slot, meta in found if meta.transaction == only]
        if not wanted and len(found) == fmt.META_PAGES:
            # A writer that died before it published its state wrote over that meta page; what it wrote is whole (P3).
            wanted = [(slot, meta) for slot, meta in found if meta.transaction > only]
        found = wanted
    if not found:
        what = "no meta page can be read" if only is None else f"no meta page of transaction {only} can be read"
        report.add("file", -1, -1, what)
        return
    found.sort(key=lambda pair: (pair[1].transaction, pair[1].durable, -pair[0]), reverse=True)
    slot, newest = found[0]
    walk = _Walk(storage, report, newest, slot, None)
    walk.run()
    if walk.breaks_durable:
        report.add(
            "I3", -1, slot,
            f"the newest meta, transaction {newest.transaction}, fails the rule of durable: not every page "
            f"born after transaction {newest.durable} verifies",
        )  # fmt: skip
    if len(found) == 1:
        return
    other_slot, other = found[1]
    if other.database_id != newest.database_id:
        report.add("file", other_slot, other_slot, "the two meta pages name different databases")
    same = other._replace(durable=newest.durable, commit_time=newest.commit_time) == newest
    if not same and (other.transaction >= newest.durable or walk.breaks_durable):
        _Walk(storage, report, other, other_slot, walk).run()


def _read_metas(storage: Source, report: Report) -> list[tuple[int, metas.Meta]]:
    """The metas that decode, with their slots; what is wrong with the others is reported."""
    found: list[tuple[int, metas.Meta]] = []
    sizes: Sequence[int] = fmt.PAGE_SIZES
    page = storage.read(0, sizes[-1])
    try:
        first = metas.decode(page, 0)
    except metas.BadMeta as error:
        report.add("file", 0, 0, f"meta page 0 cannot be used: {error}")
    else:
        found.append((0, first))
        sizes = (first.page_size,)
        _check_meta(page, first, 0, report)
    # The page size is not known if slot 0 is torn. The smallest size that fits is the right one: below the
    # second meta page there is only the first, so nobody can have put a forged one there.
    reason = "no page size leads to it"
    for size in sizes:
        page = storage.read(size, size)
        try:
            second = metas.decode(page, 1)
        except metas.BadMeta as error:
            reason = str(error) if len(sizes) == 1 or isinstance(error, metas.UnknownFormat) else reason
            continue
        if second.page_size == size:
            found.append((1, second))
            _check_meta(page, second, 1, report)
            return found
        reason = f"it names a page size of {second.page_size}, but lies at {size}"
    report.add("file", 1, 1, f"meta page 1 cannot be used: {reason}")
    return found


def _check_meta(page: bytes, meta: metas.Meta, slot: int, report: Report) -> None:
    if metas.encode(meta, slot) != page[: meta.page_size]:
        report.add("I10", slot, slot, "bytes of the meta page that are not in use are not zero")


# ---------------------------------------------------------------- one state


class _Step(NamedTuple):
    """A page to visit: its reference, the greatest birth allowed, what must be true of its level and keys."""

    ref: fmt.Reference
    limit: int
    bounds: Bounds


class _Tree:
    """The tree that is being walked: its name, who wants its records, the pages found."""

    def __init__(self, name: str, record: Callable[[int, int, bytes, bytes], None] | None) -> None:
        self.name = name
        self.record = record
        self.branches = 0
        self.leaves = 0
        self.overflow = 0
        self.whole = True


class _Walk:
    """The check of one state, from its meta down."""

    def __init__(self, storage: Source, report: Report, meta: metas.Meta, slot: int, earlier: _Walk | None) -> None:
        self.breaks_durable = False
        self.map = PageMap()
        self.trunks: dict[int, tuple[int, int]] = {}  # lowest branches, sound with their leaves: birth and checksum
        self._storage = storage
        self._report = report
        self._meta = meta
        self._slot = slot
        self._earlier = earlier
        self._size = meta.page_size
        self._file_pages = storage.size() // meta.page_size
        self._runs: list[tuple[int, int, str]] = []
        self._whole = True
        report.total += min(meta.page_count, self._file_pages)

    def run(self) -> None:
        """Walk all trees, then account for every page. O(pages)."""
        meta = self._meta
        for start, length, _birth, _freed in meta.carried:
            self._runs.append((start, length, "the carry list"))
        self._tree(meta.main, meta.transaction, _Tree("the main tree", None))
        self._tree(meta.catalog, meta.transaction, _Tree("the catalog", self._catalog_record))
        self._tree(meta.free, meta.transaction, _Tree("the free tree", self._free_record))
        self._partition()

    def _add(self, invariant: str, page: int, message: str) -> None:
        self._report.add(invariant, page, self._slot, message)

    def _complain(self, page: int, tree: _Tree, invariant: str, message: str) -> None:
        self._report.add(invariant, page, self._slot, f"{tree.name}: {message}")

    # ------------------------------------------------------------ trees

    def _tree(self, descriptor: fmt.Descriptor, limit: int, tree: _Tree) -> None:
        """Walk a tree whose root may be as young as `limit`."""
        if descriptor.depth == 0:
            if descriptor != fmt.EMPTY_TREE:
                self._add("I6", -1, f"{tree.name} is empty and still counts pages or entries")
            return
        stack = [_Step(descriptor.root, limit, Bounds(descriptor.depth - 1, b"", None))]
        while stack:
            step = stack.pop()
            level = step.bounds.level
            if level == 0:
                self._leaves([step], tree)
                continue
            before = len(self._report.findings)
            children = self._branch(step, tree)
            if level > 1:
                stack.extend(reversed(children))
                continue
            trunk = (step.ref.birth, step.ref.checksum)
            if tree.record is None and self._earlier and self._earlier.trunks.get(step.ref.number) == trunk:
                children = self._skip_known(children, tree, self._earlier)
            self._leaves(children, tree)
            if len(self._report.findings) == before:
                self.trunks[step.ref.number] = trunk
        if not tree.whole:
            self._whole = False
            return
        found = (tree.branches, tree.leaves, tree.overflow)
        if found != descriptor[2:]:
            pages = "{} branch, {} leaf and {} overflow pages; its descriptor counts {}, {} and {}"
            self._add("I6", -1, f"{tree.name} has {pages.format(*found, *descriptor[2:])}")

    def _skip_known(self, children: list[_Step], tree: _Tree, earlier: _Walk) -> list[_Step]:
        """Mark the leaves of a branch that the earlier walk found sound; return those that must be read again.

        These are the first and the last leaf, because the separators around the branch may have moved, and leaves
        with overflow values, because their runs belong into the map.
        """
        rest = [children[0], children[-1]] if children else []
        for child in children[1:-1]:
            number = child.ref.number
            if earlier.map.get(number) == _PLAIN and not self.map.get(number):
                self.map.mark(number, 1, _PLAIN)
                tree.leaves += 1
                self._report.tick(1)
            else:
                rest.append(child)
        return rest

    def _leaves(self, steps: list[_Step], tree: _Tree) -> None:
        """Check leaves; those that lie side by side in the file are read at once."""
        todo = [step for step in steps if self._admit(step.ref, step.limit, 1, tree)]
        todo.sort(key=lambda step: step.ref.number)
        size = self._size
        at, most = 0, _READ // size
        while at < len(todo):
            first = todo[at].ref.number
            stop = at + 1
            while stop < len(todo) and stop - at < most and todo[stop].ref.number == first + stop - at:
                stop += 1
            block = self._read(first, stop - at)
            for index in range(stop - at):
                self._leaf(block[index * size : (index + 1) * size], todo[at + index], tree)
            at = stop

    # ------------------------------------------------------------ references

    def _admit(self, ref: fmt.Reference, limit: int, pages: int, tree: _Tree) -> bool:
        """Mark the pages that `ref` names and tell whether they may be read: they exist, and were not met before."""
        number = ref.number
        if not fmt.FIRST_DATA_PAGE <= number <= min(self._meta.page_count, self._file_pages) - pages:
            self._doubt(ref, tree)
            there = f"this state has {self._meta.page_count} and the file {self._file_pages}"
            self._complain(number, tree, "I3", f"a reference needs {pages} page(s) here, but {there}")
            return False
        if not (self.map.take(number, _PLAIN) if pages == 1 else self._take_run(number, pages)):
            tree.whole = False
            met = self.map.first_marked(number, number + pages)
            self._complain(met, tree, "I5", "a reference leads to this page, and another one does as well")
            return False
        if ref.birth > limit:
            self._complain(number, tree, "I4", f"it was born in {ref.birth}, after {limit}, when it was referred to")
        if not ref.birth & _LOW_BITS:
            self._complain(number, tree, "I4", f"it was born in {ref.birth}, an id that no transaction has")
        self._report.tick(pages)
        return True

    def _take_run(self, number: int, pages: int) -> bool:
        """Mark the pages of an overflow run, if none of them has a mark; whether it is so."""
        free = self.map.first_marked(number, number + pages) == number + pages
        if free:
            self.map.mark(number, pages, _PLAIN)
        return free

    def _read(self, number: int, pages: int) -> bytes:
        """Pages; should the file have shrunk in the meantime, zeros stand for what is gone."""
        length = pages * self._size
        return self._storage.read(number * self._size, length).ljust(length, b"\0")

    def _doubt(self, ref: fmt.Reference, tree: _Tree) -> None:
        """The page of `ref` does not verify: what hangs below it is unknown."""
        tree.whole = False
        if ref.birth > self._meta.durable:
            self.breaks_durable = True

    def _believe(self, ref: fmt.Reference, header: tuple[int, ...], checksum: int, tree: _Tree) -> bool:
        """Whether the page with this header and this computed checksum is the one that `ref` names (I3)."""
        stored, number, birth = header[0], header[4], header[5]
        if number == ref.number and birth == ref.birth and stored == ref.checksum == checksum:
            return True
        self._doubt(ref, tree)
        if checksum != stored:
            reason = f"its checksum is {checksum:#010x}, the page says {stored:#010x}"
        elif number != ref.number:
            reason = f"it was written for page {number}"
        elif birth != ref.birth:
            reason = f"it was born in {birth}, the reference says {ref.birth}"
        else:
            reason = f"its checksum is {checksum:#010x}, the reference says {ref.checksum:#010x}"
        self._complain(ref.number, tree, "I3", reason)
        return False

    def _verify(self, raw: bytes, step: _Step, tree: _Tree) -> Complain | None:
        """If a page is the one that was referred to, and of the right kind: whom to tell what else is wrong."""
        number = step.ref.number
        complain = partial(self._complain, number, tree)
        header = fmt.PAGE_HEADER.struct.unpack_from(raw)
        if not self._believe(step.ref, header, crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE :]), tree):
            return None
        level = step.bounds.level
        wanted = fmt.BRANCH_KIND if level else fmt.LEAF_KIND
        if header[1:3] != (wanted, level):
            tree.whole = False
            kind = _KINDS.get(header[1], f"of unknown kind {header[1]}")
            complain("I3", f"it is {kind} at level {header[2]}, but {_KINDS[wanted]} at level {level} belongs here")
            return None
        return complain

    def _take_apart(self, raw: bytes, step: _Step, tree: _Tree, complain: Complain) -> Page | None:
        """The cells of a verified page, if they can be told from each other."""
        page = take_apart(raw, step.bounds, complain)
        if page is None:
            tree.whole = False
        return page

    # ------------------------------------------------------------ branches and leaves

    def _branch(self, step: _Step, tree: _Tree) -> list[_Step]:
        """Check a branch; return its children in key order."""
        if not self._admit(step.ref, step.limit, 1, tree):
            return []
        raw = self._read(step.ref.number, 1)
        complain = self._verify(raw, step, tree)
        if complain is None:
            return []
        page = self._take_apart(raw, step, tree, complain)
        if page is None:
            return []
        tree.branches += 1
        if not check_heap(page, complain):
            tree.whole = False
            return []
        refs = [fmt.unpack_reference(raw[end:stop]) for end, stop in zip(page.ends, page.stops, strict=True)]
        count = sum(ref.count for ref in refs)
        if count != step.ref.count:
            complain("I6", f"there are {count} entries below it, the reference says {step.ref.count}")
        level, low, high = step.bounds
        lows = [low, *(page.prefix + suffix for suffix in page.suffixes[1:])]
        return [
            _Step(ref, page.birth, Bounds(level - 1, *around))
            for ref, around in zip(refs, zip(lows, [*lows[1:], high], strict=True), strict=True)
        ]

    def _leaf(self, raw: bytes, step: _Step, tree: _Tree) -> None:
        """Check a leaf and what its cells lead to."""
        complain = self._verify(raw, step, tree)
        if complain is None:
            return
        if tree.record is None and sound_alike(raw, step.bounds, step.ref.count):
            tree.leaves += 1
            return
        page = self._take_apart(raw, step, tree, complain)
        if page is None:
            return
        tree.leaves += 1
        if page.cells != step.ref.count:
            complain("I6", f"it has {page.cells} entries, the reference says {step.ref.count}")
        check_heap(page, complain)
        if page.any_word_above(fmt.max_inline_value(self._size)):
            self._payloads(page, step, tree)
        if tree.record is not None:
            for suffix, end, stop, word in zip(page.suffixes, page.ends, page.stops, page.words, strict=True):
                value = raw[end:stop] if word <= fmt.LENGTH_MASK else b""
                tree.record(step.ref.number, page.birth, page.prefix + suffix, value)

    def _payloads(self, page: Page, step: _Step, tree: _Tree) -> None:
        """Follow the overflow references of a leaf; refuse kinds of payload that there are not, and long values."""
        number = step.ref.number
        limit = fmt.max_inline_value(self._size)
        if max(word & fmt.LENGTH_MASK for word in page.words) > limit:
            self._complain(number, tree, "I10", f"a value in it is longer than {limit} bytes")
        for end, word in zip(page.ends, page.words, strict=True):
            kind, length = word >> fmt.LENGTH_BITS, word & fmt.LENGTH_MASK
            if kind == fmt.INLINE:
                continue
            raw = page.raw[end : end + fmt.REFERENCE_SIZE]
            if kind == fmt.OVERFLOW and length == len(raw) == fmt.REFERENCE_SIZE:
                self.map.mark(number, 1, _LEADS_ON)
                self._overflow(fmt.unpack_reference(raw), page.birth, number, tree)
            else:
                tree.whole = False
                self._complain(number, tree, "I10", f"it has a payload of kind {kind} and {length} bytes")

    def _overflow(self, ref: fmt.Reference, limit: int, leaf: int, tree: _Tree) -> None:
        """Check the run of an overflow value, a piece at a time."""
        if ref.count <= fmt.max_inline_value(self._size):
            self._complain(leaf, tree, "I10", f"a value of only {ref.count} bytes lies in an overflow run")
        pages = fmt.overflow_pages(ref.count, self._size)
        if not self._admit(ref, limit, pages, tree):
            return
        tree.overflow += pages
        header, checksum, block = b"", 0, b""
        most = _READ // self._size
        for first in range(0, pages, most):
            block = self._read(ref.number + first, min(most, pages - first))
            header = header or block[: fmt.HEADER_SIZE]
            checksum = crc32c(memoryview(block)[0 if first else fmt.CHECKSUM_SIZE :], checksum)
        fields = fmt.PAGE_HEADER.struct.unpack(header)
        if not self._believe(ref, fields, checksum, tree):
            return
        if fields[1:] != (fmt.OVERFLOW_KIND, 0, 0, ref.number, ref.birth, 0, 0, 0, 0):
            self._complain(ref.number, tree, "I3", "it has not the header of an overflow run")
        unused = pages * self._size - fmt.HEADER_SIZE - ref.count  # less than a page, so within the last block
        if unused and block[-unused:] != ZEROS[:unused]:
            self._complain(ref.number, tree, "I10", "bytes after the end of the value are not zero")

    # ------------------------------------------------------------ catalog and free tree

    def _catalog_record(self, number: int, birth: int, key: bytes, value: bytes) -> None:
        try:
            name = f"tree {key.decode()!r}"
        except UnicodeDecodeError:
            name = f"tree {key!r}"
            self._add("file", number, f"the catalog: the name {key!r} is not UTF-8")
        if not key:
            self._add("file", number, "the catalog: a tree has an empty name")
        descriptor = fmt.unpack_descriptor(value) if len(value) == fmt.DESCRIPTOR_SIZE else None
        if descriptor is None or descriptor.pack() != value:
            self._whole = False
            self._add("I10", number, f"the catalog: the record of {name} is not a tree descriptor")
            return
        try:
            metas.check_descriptor(descriptor, name, self._meta.transaction, self._meta.page_count)
        except metas.BadMeta as error:
            self._whole = False
            invariant = "I4" if descriptor.root.birth > self._meta.transaction else "I10"
            self._add(invariant, number, f"the catalog: {error}")
            return
        self._tree(descriptor, birth, _Tree(name, None))

    def _free_record(self, number: int, _birth: int, key: bytes, value: bytes) -> None:
        runs, rest = divmod(len(value), fmt.FREE_RUN.size)
        if len(key) != fmt.FREE_KEY.size or rest or not 1 <= runs <= fmt.runs_per_record(self._size):
            self._whole = False
            self._add("I10", number, f"the free tree: a key of {len(key)} and a value of {len(value)} bytes")
            return
        written, _chunk = fmt.FREE_KEY_STRUCT.unpack(key)
        if written > self._meta.transaction:
            self._add("I4", number, f"the free tree: a record was written in {written}, after this state")
        page_count = self._meta.page_count
        for start, length, birth, freed in fmt.unpack_runs(value):
            if not birth <= freed <= self._meta.transaction:
                self._add("I4", number, f"the free tree: a run at page {start} born in {birth} and freed in {freed}")
            if fmt.FIRST_DATA_PAGE <= start < page_count and 1 <= length <= page_count - start:
                self._runs.append((start, length, "the free tree"))
            else:
                self._add("I5", number, f"the free tree: a run of {length} pages at {start}, of {page_count}")

    # ------------------------------------------------------------ every page once

    def _partition(self) -> None:
        """Each page is reachable or free or carried, none twice, none lost (I5)."""
        lost: list[tuple[int, int]] = []
        done, before = fmt.FIRST_DATA_PAGE, "nothing"
        self._runs.sort()
        for start, length, where in [*self._runs, (self._meta.page_count, 0, "the end")]:
            stop = start + length
            if start < done:
                self._add("I5", start, f"it is free twice: in {before} and in {where}")
            else:
                lost += self._unmarked(done, start)
            if stop > done:
                met = self.map.first_marked(max(start, done), stop)
                if met < stop:
                    self._add("I5", met, f"it is reachable and, with a run of {length} pages at {start}, in {where}")
                done, before = stop, where
        if not self._whole:
            # What is lost may as well hang below the pages that could not be entered.
            count = sum(stop - start for start, stop in lost)
            if count:
                self._add("I5", -1, f"{count} pages cannot be accounted for, as damaged pages may lead to them")
            return
        for start, stop in lost:
            pages = f"page {start} is" if stop == start + 1 else f"pages {start} to {stop - 1} are"
            self._add("I5", start, f"{pages} neither reachable nor free")

    def _unmarked(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        while (start := self.map.first_unmarked(start, stop)) < stop:
            first, start = start, self.map.first_marked(start, stop)
            yield first, start
