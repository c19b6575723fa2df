"""One mapping of the data file, and which page versions in it were verified: the twin of `cowdb.space`.

The mapping is pinned by a `Window` for as long as anybody looks at a page in it.
The births are 4 bytes a page in one block that never moves; threads may write
them at the same time, for each store is one aligned word and says what is true.
"""

from __future__ import annotations

from native.frames import *
from native.memory import *


@cython.final
@cython.no_gc_clear
@cython.cclass
class Space:
    """A mapping of the whole file with its verified births, shared by all trees that look into it."""

    window = cython.declare(Window)
    base = cython.declare(Bytes)
    births = cython.declare(cython.pointer[u32])
    _room = cython.declare(object)  # owns `births`
    shift = cython.declare(cython.int)
    pages = cython.declare(u64, visibility="readonly")
    page_size = cython.declare(cython.int, visibility="readonly")
    key_limit = cython.declare(cython.int, visibility="readonly")
    inline_limit = cython.declare(cython.int, visibility="readonly")
    verify = cython.declare(cython.bint, visibility="readonly")
    branches = cython.declare(dict, visibility="readonly")
    frames = cython.declare(Frames, visibility="readonly")  # for the dirty pages of whoever changes what lies here

    def __init__(self, mapping, page_size: cython.int, *, verify: cython.bint = True, before: Space = None):
        """`before` is the smaller mapping of the same file that this one follows. O(pages)."""
        if page_size not in fmt.PAGE_SIZES:
            raise ValueError(f"{page_size} is no page size")
        window = Window(mapping)
        pages: u64 = cython.cast(u64, window.length) // page_size
        room = Window(bytearray(4 * pages))
        self.births = cython.cast(cython.pointer[u32], room.at)
        if before is not None and before.page_size == page_size:
            self.frames = before.frames
        else:
            self.frames = Frames(page_size)
        if before is not None:
            shared: u64 = pages if pages < before.pages else before.pages
            memcpy(self.births, before.births, 4 * shared)
        self._room = room
        self.window = window
        self.base = window.at
        self.page_size = page_size
        self.key_limit = fmt.max_key_size(page_size)
        self.inline_limit = fmt.max_inline_value(page_size)
        self.shift = int(page_size).bit_length() - 1
        self.verify = verify
        self.pages = pages
        self.branches = {}  # the plain kernel keeps unpacked branches here; this one has no need to

    @property
    def data(self):
        """The mapping."""
        return self.window.data

    @property
    def words(self):
        """The same memory as 64-bit integers."""
        return memoryview(self.window.data).cast("Q")

    @property
    def verified(self):
        """The births that were met, one 32-bit integer a page; 0 stands for none."""
        room: Window = self._room
        return memoryview(room.data).cast("I")[: self.pages]

    def trust(self, written: list, birth: u64) -> None:
        """The pages of these numbers were written by this process: they are met already."""
        number: u64
        for number in written:
            if number < self.pages:
                self.births[number] = cython.cast(u32, birth)

    def cut(self, pages: u64) -> None:
        """Forget the pages from number `pages` on: the file is about to be cut there."""
        if pages < self.pages:
            memset(self.births + pages, 0, 4 * (self.pages - pages))
            self.pages = pages

    def meet(self, bits, level: cython.int) -> None:
        """Believe the page that the packed reference `bits` names, or raise `CorruptionError`."""
        ref: Ref
        unpack_ref(bits, cython.address(ref))
        self.believe(cython.address(ref), level)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def believe(self, ref: cython.pointer[Ref], level: cython.int) -> cython.int:
        """See `meet`."""
        number: u64 = ref.number
        if number < 2 or number >= self.pages:
            raise CorruptionError(number, f"a reference leads outside the file of {self.pages} pages")
        self.refuse_unborn(ref)
        at: Bytes = self.base + (number << self.shift)
        size: cython.int = self.page_size
        self._compare(ref, at, size)
        view: View
        fits: cython.bint = open_view(cython.address(view), at, size)
        if view.kind != (BRANCH_KIND if level else LEAF_KIND) or view.level != level:
            raise CorruptionError(number, f"kind {view.kind} level {view.level} where level {level} belongs")
        heap: cython.int = cython.cast(cython.int, get16(at + 26))
        dead: cython.int = cython.cast(cython.int, get16(at + 28))
        if not fits or not view.cells or not view.slots + 8 * view.cells - at <= heap <= size or dead > size:
            raise CorruptionError(
                number, f"{view.cells} cells, prefix {view.prefix} and heap {heap} do not fit together"
            )
        self.births[number] = cython.cast(u32, ref.birth)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def refuse_unborn(self, ref: cython.pointer[Ref]) -> cython.int:
        """No birth has low bits of zero: in `births` they say that a page was not met."""
        if cython.cast(u32, ref.birth):
            return 0
        raise CorruptionError(
            ref.number, f"a reference says that it was born in transaction {ref.birth}, an id never given out"
        )

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _compare(self, ref: cython.pointer[Ref], at: Bytes, length: u64) -> cython.int:
        """I3: number, birth and checksum of the `length` bytes at `at` equal those of the reference."""
        if not self.verify:
            return 0
        stored: u32 = cython.cast(u32, get32(at))
        actual: u32 = crc_of(at + 4, length - 4, 0, 0)
        if stored != actual:
            raise CorruptionError(ref.number, f"its checksum is {actual:#010x}, not {stored:#010x} as it says")
        if get64(at + 8) != ref.number:
            raise CorruptionError(ref.number, f"it is page {get64(at + 8)}, written to the wrong place")
        if get64(at + 16) != ref.birth:
            raise CorruptionError(ref.number, f"it was born in transaction {get64(at + 16)}, not {ref.birth}")
        if stored != ref.checksum:
            raise CorruptionError(ref.number, "it is another version than the one that the reference names")
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def reach(self, ref: cython.pointer[Ref], level: cython.int, view: cython.pointer[View]) -> cython.int:
        """Look at the page that a reference leads to, verified. O(1) once it was met."""
        birth: u32 = cython.cast(u32, ref.birth)
        if not level:
            prefetch_leaf(self.base + (ref.number << self.shift), self.page_size)
        if ref.number >= self.pages or self.births[ref.number] != birth or not birth:
            self.believe(ref, level)
        if (
            not open_view(view, self.base + (ref.number << self.shift), self.page_size)
            or view.level != level
            or view.kind != (BRANCH_KIND if level else LEAF_KIND)
            or not view.cells
        ):
            raise CorruptionError(ref.number, f"it is not a page of level {level}" if level else "it is not a leaf")
        return 0

    def overflow(self, raw: bytes):
        """Byte offset and length of the overflow value behind a packed reference, verified. O(length), then O(1)."""
        ref: Ref
        if len(raw) != 22:
            raise CorruptionError(-1, "a reference is cut short")
        read_ref(bytes_at(raw), cython.address(ref))
        at: Bytes = self.run(cython.address(ref))
        return at - self.base, ref.count

    @cython.cfunc
    def run(self, ref: cython.pointer[Ref]) -> Bytes:
        """Where the overflow value behind a reference begins, verified; `ref.count` bytes of it are there."""
        number: u64 = ref.number
        pages: u64 = (HEADER + ref.count + self.page_size - 1) >> self.shift
        if number < 2 or number >= self.pages or pages > self.pages - number:
            raise CorruptionError(number, f"an overflow run of {pages} pages leads outside the file")
        self.refuse_unborn(ref)
        at: Bytes = self.base + (number << self.shift)
        birth: u32 = cython.cast(u32, ref.birth)
        if self.births[number] != birth:
            self._compare(ref, at, pages << self.shift)
            if at[4] != OVERFLOW_KIND:
                raise CorruptionError(number, f"kind {at[4]} where an overflow run belongs")
            self.births[number] = birth
        return at + HEADER
