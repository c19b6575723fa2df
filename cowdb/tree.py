"""Reading a copy-on-write B+tree: one root names one immutable tree.

Entries lie in leaves, in key order; branches hold separators and references.
A reference carries number, birth and checksum of its page, so that a page is
verified when it is first met, and the count of entries below it, so that rank
and select cost O(log n).

                   [ -inf | m ]                 level 1
                  /            \\
        [ a | c | k ]      [ m | q | t | z ]    level 0

    rank of q = count below the first child (3) + its index in the leaf (1)

Nothing here is locked or counted: the pages of a snapshot are never written
while it lives (I1, I2).

Source: R. Bayer, E. McCreight, "Organization and maintenance of large ordered
indexes", Acta Informatica 1 (1972); D. Comer, "The ubiquitous B-tree", ACM
Computing Surveys 11 (1979).  Order statistics from subtree counts: D. Knuth,
TAOCP volume 3, section 6.2.3.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, overload

from cowdb import format as fmt
from cowdb.errors import ClosedError, CorruptionError
from cowdb.page import Page
from cowdb.path import Path
from cowdb.space import BIRTH_MASK, LATELY, Branch, Space

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reader", "as_key", "lookup_key"]

_T = TypeVar("_T")
_Tree = TypeVar("_Tree", bound="Reader")
_P = ParamSpec("_P")
_REFERENCE_SIZE: Final = fmt.REFERENCE_SIZE
_LENGTH_MASK: Final = fmt.LENGTH_MASK
_MAX_U48: Final = fmt.MAX_U48
_LEAF_KIND: Final = fmt.LEAF_KIND
_HEADER_WORDS: Final = fmt.HEADER_SIZE // 8
_KINDS: Final = tuple((fmt.BRANCH_KIND if level else fmt.LEAF_KIND) | level << 8 for level in range(fmt.MAX_DEPTH))
"""What kind and level read as one 16-bit integer, by level."""

Place = tuple[Page, bytes | None, bytes | None, Branch | None, int]
"""A leaf, the separators below and above it, and the branch and its child that the leaf is."""


def as_key(key: object) -> bytes:
    """`key` as bytes: anything with the buffer protocol; `TypeError` for everything else, `str` included."""
    if isinstance(key, bytes):
        return bytes(key)
    try:
        return bytes(memoryview(key))  # type: ignore[arg-type]  # any object may be asked
    except TypeError:
        hint = "; encode it first, for example with .encode()" if isinstance(key, str) else ""
        raise TypeError(f"keys and values are bytes-like, not {type(key).__name__}{hint}") from None


def lookup_key(key: object) -> bytes | None:
    """`key` as bytes for a lookup; None if nothing of its type can be a key. A `str` is a mistake: `TypeError`."""
    try:
        return as_key(key)
    except TypeError:
        if isinstance(key, str):
            raise
        return None


def believed(look: Callable[Concatenate[_Tree, _P], _T]) -> Callable[Concatenate[_Tree, _P], _T]:
    """A method that raises `ClosedError` instead of the damage that it meets in a tree which was closed meanwhile."""

    @wraps(look)
    def looked(tree: _Tree, /, *args: _P.args, **options: _P.kwargs) -> _T:
        try:
            return look(tree, *args, **options)
        except CorruptionError:
            tree.open_space()
            raise

    return looked


class Reader:
    """Looks into one tree.

    `bits` is the packed reference to the root, `depth` the number of levels
    (0: the tree is empty).  `page` is the dirty root of a tree that is being
    changed, and None here.  After `close` every use raises `ClosedError`.

    Another thread may close it at any moment, and then the pages may be written
    again.  So what was read, and damage that was met, is believed only if the tree
    is still open after it.
    """

    __slots__ = ("_pin", "bits", "depth", "page", "space")

    page: Page | None
    _pin: Any  # for views of values: gives a mapping that keeps the snapshot alive as long as it is held, or None
    version = 0  # a tree that is being changed counts its changes here

    def __init__(self, space: Space, descriptor: fmt.Descriptor) -> None:
        self.space: Space | None = space
        self.bits = int.from_bytes(descriptor.root.pack(), "little")
        self.depth = descriptor.depth
        self.page = None
        self._pin = None

    def close(self) -> None:
        """Let go of the file; later uses raise `ClosedError`."""
        self.space = None
        self.page = None
        self._pin = None

    def open_space(self) -> Space:
        """The mapping to look into; raises `ClosedError` after `close`."""
        space = self.space
        if space is None:
            raise ClosedError("this transaction has ended; begin another one with read() or write()")
        return space

    # ------------------------------------------------------------ pages

    def load(self, bits: int, level: int) -> Page:
        """The clean page that the packed reference `bits` leads to, verified. O(1) once it was met."""
        space = self.space or self.open_space()
        number = bits & fmt.MAX_U48
        # No birth has low bits of zero (see `space`): a forged one must not pass for a page that was met.
        if number >= space.pages or not space.verified[number] == bits >> 48 & BIRTH_MASK != 0:
            try:
                space.meet(bits, level)
            except CorruptionError:
                self.open_space()
                raise
        at = number * space.page_size
        if space.words[at >> 3] >> 32 & 0xFFFF != _KINDS[level]:
            self.open_space()
            raise CorruptionError(number, f"it is not a page of level {level}")
        return Page(space.data, space.words, at)

    def root_page(self) -> Page | None:
        """The root, clean or dirty; None if the tree is empty."""
        if self.page is not None:
            return self.page
        if self.space is None or not self.depth:
            self.open_space()
            return None
        return self.load(self.bits, self.depth - 1)

    def child(self, page: Page, index: int) -> Page:
        """Child `index` of a branch, clean or dirty."""
        if page.kids is not None:
            kid = page.kids[index]
            if kid is not None:
                return kid
        return self.load(page.reference(index), page.level - 1)

    # ------------------------------------------------------------ one leaf of a clean tree

    def leaf_at(self, key: bytes) -> Place | None:
        """The clean leaf whose range holds `key`, and its separators, None at the ends; None if the tree is empty.

        Last comes its branch, if `Space` keeps that unpacked, and which child of it
        the leaf is, so that its neighbours are found without a search.  O(log n).
        """
        return self._leaf(key, before=False)

    def leaf_before(self, key: bytes | None) -> Place | None:
        """The same for the keys just below `key`; None: for the greatest keys of all. O(log n)."""
        return self._leaf(key, before=True)

    def _leaf(self, key: bytes | None, *, before: bool) -> Place | None:
        lower = upper = None
        branch = None
        index = 0
        level = self.depth - 1
        bits = self.bits
        space = self.space or self.open_space()
        if level < 0:
            return None
        branches = space.branches
        while level > 0:
            branch = branches.get(bits)
            if branch is None:
                page = self.load(bits, level)
                space.warm(bits, page)
                index = page.cells - 1 if key is None else page.child_before(key) if before else page.child_index(key)
                if index:
                    lower = page.key(index)
                if index + 1 < page.cells:
                    upper = page.key(index + 1)
                bits = page.reference(index)
            else:
                separators, references = branch
                if key is None:
                    index = len(separators)
                else:
                    index = bisect_left(separators, key) if before else bisect_right(separators, key)
                if index:
                    lower = separators[index - 1]
                if index < len(separators):
                    upper = separators[index]
                bits = references[index]
            level -= 1
        return self.load(bits, 0), lower, upper, branch, index

    # ------------------------------------------------------------ one key

    def locate(self, key: bytes, bits: int, level: int) -> tuple[int, int] | None:
        """Kind and length of the entry of `key`, and where in the mapping its payload is; None if it is not there.

        Begins at the clean page behind `bits`.  O(log n).  This is the hot path
        of every lookup: it goes through the branches and leaves that `Space` keeps
        unpacked, and searches any other leaf where it lies, without making a `Page`.
        """
        space = self.space
        if space is None:
            space = self.open_space()
        branches = space.branches
        while level > 0:
            branch = branches.get(bits)
            if branch is None:
                page = self.load(bits, level)
                space.warm(bits, page)
                bits = page.reference(page.child_index(key))
            else:
                bits = branch[1][bisect_right(branch[0], key)]
            level -= 1
        hot = space.leaves.get(bits)
        if hot is not None:
            return hot.get(key)
        data = space.data
        words = space.words
        number = bits & _MAX_U48
        try:
            if not space.verified[number] == bits >> 48 & BIRTH_MASK != 0:
                space.meet(bits, 0)
            base = number << space.word_shift
            lead = words[base]
            if lead >> 32 & 0xFFFF != _LEAF_KIND:
                raise CorruptionError(number, "it is not a leaf")
            cells = lead >> 48
            visits = space.visits
            seen = visits.get(bits, 0)
            if seen < 2 * cells:
                visits[bits] = seen + 1
                if not seen and len(visits) > LATELY:
                    visits.clear()
            else:
                space.take_apart(bits, Page(data, words, base << 3))
            start = base + _HEADER_WORDS
            stop = start + cells
            length = words[base + 3] & 0xFFFF
            rest = key
            if length:
                at = (base << 3) + fmt.HEADER_SIZE
                if not key.startswith(data[at : at + length]):
                    return None
                rest = key[length:]
                pad = length + 7 >> 3
                start += pad
                stop += pad
            size = len(rest)
            head = int.from_bytes(rest[:4], "big")
            if size < 4:
                head <<= 8 * (4 - size)
            place = bisect_left(words, head << 32, start, stop)
            if place == stop:
                return None
            slot = words[place]
            if slot >> 32 != head:
                return None
            offset = (base << 3) + (slot >> 16 & 0xFFFF)
            if slot & 0xFFFF != size or data[offset + 2 : offset + 2 + size] != rest:
                # Another key with the same head: look closer.
                page = Page(data, words, base << 3)
                index = page.lower_bound(key)
                if not page.has_key(index, key):
                    return None
                offset = (base << 3) + (words[start + index] >> 16 & 0xFFFF)
            end = offset + 2 + size
            info = data[offset] | data[offset + 1] << 8
            if end + (info & _LENGTH_MASK) > (number + 1) * space.page_size:
                raise CorruptionError(number, "a cell of it leads outside")
        except CorruptionError:
            self.open_space()
            raise
        except IndexError:
            self.open_space()
            if number >= space.pages:
                raise CorruptionError(number, f"a reference leads outside the file of {space.pages} pages") from None
            raise CorruptionError(number, "its slots or cells lead outside the file") from None
        return info, end

    def find(self, key: bytes) -> tuple[int, bytes] | None:
        """Kind and length, and payload, of the entry of `key`; None if it is not there. O(log n)."""
        bits = self.bits
        level = self.depth - 1
        page = self.page
        while page is not None:
            if not page.level:
                index = page.lower_bound(key)
                return page.payload(index) if page.has_key(index, key) else None
            index = page.child_index(key)
            assert page.kids is not None
            level = page.level - 1
            kid = page.kids[index]
            if kid is None:
                bits = page.reference(index)
            page = kid
        if level < 0:
            self.open_space()
            return None
        found = self.locate(key, bits, level)
        data = self.open_space().data
        if found is None:
            return None
        info, payload = found
        hit = info, data[payload : payload + (info & _LENGTH_MASK)]
        self.open_space()
        return hit

    @overload
    def get(self, key: object, /) -> bytes | None: ...
    @overload
    def get(self, key: object, /, default: _T) -> bytes | _T: ...
    def get(self, key: object, /, default: object = None) -> object:
        """The value of `key`, or `default`. O(log n)."""
        if key.__class__ is not bytes:
            key = lookup_key(key)
            if key is None:
                return default
        if self.page is not None or not self.depth:
            hit = self.find(key)
            return default if hit is None else self.value(*hit)
        found = self.locate(key, self.bits, self.depth - 1)
        space = self.space
        if space is None:
            space = self.open_space()
        if found is None:
            return default
        data = space.data
        info, payload = found
        if info > _LENGTH_MASK:
            return self.value(info, data[payload : payload + _REFERENCE_SIZE])
        value = data[payload : payload + info]
        if self.space is None:
            self.open_space()
        return value

    def value(self, info: int, payload: bytes) -> bytes:
        """The value that a leaf entry's kind and payload stand for. O(its length)."""
        kind = info >> fmt.LENGTH_BITS
        if kind == fmt.INLINE:
            return payload
        if kind != fmt.OVERFLOW or len(payload) != _REFERENCE_SIZE:
            raise CorruptionError(-1, f"an entry of kind {kind}, which this version does not know")
        return self.fetch(payload)

    @believed
    def fetch(self, raw: bytes) -> bytes:
        """The value behind the packed reference of an overflow run."""
        space = self.open_space()
        offset, length = space.overflow(raw)
        value = bytes(space.data[offset : offset + length])
        self.open_space()
        return value

    def __contains__(self, key: object, /) -> bool:
        """True if there is such a key. O(log n)."""
        if key.__class__ is not bytes:
            key = lookup_key(key)
            if key is None:
                return False
        return self.find(key) is not None

    def __len__(self) -> int:
        """Number of entries. O(1)."""
        if self.page is not None:
            return self.page.count
        self.open_space()
        return self.bits >> 96 & fmt.MAX_U48

    # ------------------------------------------------------------ order

    @believed
    def rank(self, key: bytes) -> int:
        """Number of entries whose key is less than `key`. O(log n)."""
        page = self.root_page()
        if page is None:
            return 0
        total = 0
        while page.level:
            index = page.child_index(key)
            total += page.count_before(index)
            page = self.child(page, index)
        total += page.lower_bound(key)
        self.open_space()
        return total

    @believed
    def entry(self, path: Path) -> tuple[bytes, bytes]:
        """Key and value at `path`."""
        leaf = path.leaf
        found = leaf.key(path.index), self.value(*leaf.payload(path.index))
        self.open_space()
        return found

    def path(self) -> Path:
        """A path that leads nowhere yet. O(1)."""
        return Path(self)

    @believed
    def select(self, rank: int) -> tuple[bytes, bytes]:
        """Entry number `rank` in key order, 0 <= rank < len. O(log n)."""
        if not 0 <= rank < len(self):
            raise IndexError(f"index {rank} of a tree of {len(self)} entries")
        path = Path(self)
        path.select(rank)
        return self.entry(path)

    @believed
    def ceiling(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The first entry whose key is >= `key`, or None. O(log n)."""
        path = Path(self)
        return self.entry(path) if path.seek(key) else None

    @believed
    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        """The last entry whose key is <= `key`, or None. O(log n)."""
        path = Path(self)
        return self.entry(path) if path.seek_before(key, inclusive=True) else None

    @believed
    def edge(self, *, last: bool) -> tuple[bytes, bytes] | None:
        """The first or last entry, or None. O(log n)."""
        path = Path(self)
        return self.entry(path) if path.edge(last=last) else None
