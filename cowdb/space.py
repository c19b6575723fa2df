"""One mapping of the data file, and which page versions in it were verified.

A reference carries the number, the birth and the checksum of the page that it
leads to.  The first time that this process meets a page version, `meet`
compares all three with the page itself (I3); from then on a look into an array
of births, four bytes a page, is enough.

    verified:   page    0    1    2    3    4    5 ...
                birth   0    0   41   17    0   42      0: not met yet

Branches that are visited often are kept unpacked as well, by the whole reference
that leads to them, so that one of them costs a lookup one binary search.  So are
leaves that are visited very often within a short time, for whom it is one look
into a dictionary.

Only the low 32 bits of a birth are kept; transaction ids whose low 32 bits are
zero are never given out, so that 0 can mean "not met".
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NoReturn

from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError, ForkedError

__all__ = ["BIRTH_MASK", "FORKED", "Space", "refuse"]

BIRTH_MASK: Final = 0xFFFFFFFF
_HEADER: Final = fmt.PAGE_HEADER.struct
_VISITS: Final = 16
_KEPT_CELLS: Final = 200_000
LATELY: Final = 1024
"""Leaves whose visits are counted, before the counting begins anew: who comes back later than that is not hot."""
_KEPT_ENTRIES: Final = 65_536
_LONG: Final = 64
"""Bytes of a leaf's keys on average, above which it takes too much memory to keep it."""

Branch = tuple[list[bytes], list[int]]
"""A branch unpacked: the separators, without the one of cell 0, and the packed references of the children."""

Leaf = dict[bytes, tuple[int, int]]
"""A leaf unpacked: for each key the kind and length of its payload, and where in the mapping it is."""


class Space:
    """A mapping of the whole file with its verified births, shared by all trees that look into it.

    `data` slices to `bytes`; `words` is the same memory as 64-bit integers.
    `verified` has one element a page, so an index error means a page number
    beyond the mapping (I10).
    """

    __slots__ = (
        "_visits", "branches", "data", "leaves", "page_size", "pages", "verified", "verify", "visits", "word_shift",
        "words",
    )  # fmt: skip

    def __init__(self, mapping: Any, page_size: int, *, verify: bool = True, before: Space | None = None) -> None:
        """`before` is the smaller mapping of the same file that this one follows. O(pages)."""
        self.data = mapping
        self.words = memoryview(mapping).cast("Q")
        self.page_size = page_size
        self.pages = len(mapping) // page_size
        self.word_shift = page_size.bit_length() - 4
        self.verify = verify
        self.verified = array("I", bytes(4 * self.pages))
        self.branches: dict[int, Branch] = {}
        self._visits: dict[int, int] = {}
        self.leaves: dict[int, Leaf] = {}
        self.visits: dict[int, int] = {}  # to leaves, of late
        if before is not None:
            self.branches = before.branches
            self.leaves = before.leaves
            shared = min(self.pages, before.pages)
            self.verified[:shared] = before.verified[:shared]

    def warm(self, bits: int, page: Any) -> None:
        """Count a visit to the branch behind the packed reference `bits`; unpack it when it is visited often.

        What is kept is bounded, by about `_KEPT_CELLS` times 100 bytes; then it is
        all forgotten, and grows again from what is in use.
        """
        visits = self._visits.get(bits, 0) + 1
        if visits < _VISITS:
            if len(self._visits) >= _KEPT_CELLS:
                self._visits.clear()
            self._visits[bits] = visits
            return
        cells = page.cells
        if len(self.branches) * cells > _KEPT_CELLS:
            self.branches.clear()
            self._visits.clear()
        self.branches[bits] = [page.key(index) for index in range(1, cells)], list(map(page.reference, range(cells)))

    def take_apart(self, bits: int, page: Any) -> None:
        """Keep the leaf behind the packed reference `bits` unpacked, unless its keys are long. O(cells).

        It takes as long as about half a lookup for each cell.  So who calls it after
        twice as many visits as there are cells loses a quarter if it was in vain.
        What is kept is bounded, by about `_KEPT_ENTRIES` times 250 bytes.
        """
        self.visits.pop(bits, None)
        leaf: Leaf = {}
        end = page.at + self.page_size
        for index in range(page.cells):
            try:
                info, place = page.place(index)
            except CorruptionError:
                return  # who asks for that one is told
            if place + (info & fmt.LENGTH_MASK) > end:
                return
            leaf[page.key(index)] = info, place
        if sum(map(len, leaf)) > _LONG * len(leaf):
            return
        if (len(self.leaves) + 1) * page.cells > _KEPT_ENTRIES:
            self.leaves.clear()
        self.leaves[bits] = leaf

    def trust(self, written: list[int], birth: int) -> None:
        """The pages of these numbers were written by this process: they are met already."""
        verified = self.verified
        birth &= BIRTH_MASK
        pages = self.pages
        for number in written:
            if number < pages:
                verified[number] = birth

    def cut(self, pages: int) -> None:
        """Forget the pages from number `pages` on: the file is about to be cut there."""
        if pages < self.pages:
            self.pages = pages
            del self.verified[pages:]

    def meet(self, bits: int, level: int) -> None:
        """Believe the page that the packed reference `bits` names, or raise `CorruptionError`.

        It must be a branch or leaf at `level`.  O(page size), once a page version.
        """
        number = bits & fmt.MAX_U48
        birth = bits >> 48 & fmt.MAX_U48
        if not fmt.FIRST_DATA_PAGE <= number < self.pages:
            raise CorruptionError(number, f"a reference leads outside the file of {self.pages} pages")
        if not birth & BIRTH_MASK:
            raise _unborn(number, birth)
        at = number * self.page_size
        checksum, kind, own_level, cells, own_number, own_birth, prefix, heap, dead, _ = _HEADER.unpack_from(
            self.data, at
        )
        if self.verify:
            actual = crc32c(memoryview(self.data)[at + fmt.CHECKSUM_SIZE : at + self.page_size])
            self._compare(bits, own_number, own_birth, checksum, actual)
        if kind != (fmt.BRANCH_KIND if level else fmt.LEAF_KIND) or own_level != level:
            raise CorruptionError(number, f"kind {kind} level {own_level} where level {level} belongs")
        slots_end = fmt.HEADER_SIZE + (prefix + 7 & -8) + cells * fmt.SLOT_SIZE
        if not cells or not slots_end <= heap <= self.page_size or dead > self.page_size:
            raise CorruptionError(number, f"{cells} cells, prefix {prefix} and heap {heap} do not fit together")
        self.verified[number] = birth & BIRTH_MASK

    def overflow(self, raw: bytes) -> tuple[int, int]:
        """Byte offset and length of the overflow value behind a packed reference, verified.

        O(length) the first time, then O(1).  Raises `CorruptionError`.
        """
        bits = int.from_bytes(raw, "little")
        number = bits & fmt.MAX_U48
        birth = bits >> 48 & fmt.MAX_U48
        length = bits >> 96 & fmt.MAX_U48
        pages = fmt.overflow_pages(length, self.page_size)
        if not (fmt.FIRST_DATA_PAGE <= number < self.pages and pages <= self.pages - number):
            raise CorruptionError(number, f"an overflow run of {pages} pages leads outside the file")
        if not birth & BIRTH_MASK:
            raise _unborn(number, birth)
        at = number * self.page_size
        if self.verified[number] != birth & BIRTH_MASK:
            checksum, kind, _, _, own_number, own_birth, *_ = _HEADER.unpack_from(self.data, at)
            if self.verify:
                end = at + pages * self.page_size
                actual = crc32c(memoryview(self.data)[at + fmt.CHECKSUM_SIZE : end])
                self._compare(bits, own_number, own_birth, checksum, actual)
            if kind != fmt.OVERFLOW_KIND:
                raise CorruptionError(number, f"kind {kind} where an overflow run belongs")
            self.verified[number] = birth & BIRTH_MASK
        return at + fmt.HEADER_SIZE, length

    @staticmethod
    def _compare(bits: int, number: int, birth: int, stored: int, actual: int) -> None:
        """I3: number, birth and checksum of the page equal those of the reference `bits`."""
        wanted = bits & fmt.MAX_U48
        if stored != actual:
            raise CorruptionError(wanted, f"its checksum is {actual:#010x}, not {stored:#010x} as it says")
        if number != wanted:
            raise CorruptionError(wanted, f"it is page {number}, written to the wrong place")
        if birth != bits >> 48 & fmt.MAX_U48:
            raise CorruptionError(wanted, f"it was born in transaction {birth}, not {bits >> 48 & fmt.MAX_U48}")
        if stored != bits >> 144:
            raise CorruptionError(wanted, "it is another version than the one that the reference names")


def _unborn(number: int, birth: int) -> CorruptionError:
    return CorruptionError(number, f"a reference says that it was born in transaction {birth}, an id never given out")


def refuse() -> NoReturn:
    """Every use of a transaction that a forked child has inherited ends here."""
    raise ForkedError("this transaction was begun before a fork and is the parent's; open the database again here")


class _ForkedSpace(Space):
    """Stands where a tree had its mapping before the process was forked: every look at it raises."""

    __slots__ = ()

    def __init__(self) -> None:
        """There is nothing to look at."""

    def __getattribute__(self, name: str) -> NoReturn:
        refuse()


FORKED: Final = _ForkedSpace()
"""The one of them; looking for it costs the readers of the parent nothing."""
