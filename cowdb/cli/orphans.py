r"""Pages that nothing leads to any more, found by reading the whole file.

When a branch is damaged, the pages below it are whole but out of reach.  Each page
says itself what it is: its number, its birth, its level and a checksum over its bytes.  So every
page that is neither reached nor free, and holds by itself, is an *orphan*.

              R                     reached
            /   \
           A    (B damaged)         a gap: keys from k up to m, born by t
          / \     .  .
         1   2    3   4             3 and 4: orphans, with keys that fit the gap

Orphan branches lead to orphan leaves, by references that verify, so orphans form trees
of their own; a tree whose keys, level and birth fit the gap of one lost page belongs there.
An overflow run has its own checksum, so its value is verified when it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError
from cowdb.lookup import references
from cowdb.pagecheck import Bounds, Page, take_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowdb.cli.output import Progress
    from cowdb.inspection import Source, State

__all__ = ["Orphan", "Orphans", "find_orphans", "guess_page_size", "page_alone"]

_READ: Final = 1 << 20


class Orphan(NamedTuple):
    """A branch or leaf that holds by itself: what it is, and the greatest bounds of its keys."""

    number: int
    birth: int
    checksum: int
    level: int
    first: bytes
    last: bytes
    entries: int
    kids: tuple[fmt.Reference, ...]


def page_alone(raw: bytes, number: int, size: int) -> Page | None:
    """The branch or leaf in `raw`, if it holds by itself; nothing led to it, so no bounds are known."""
    if len(raw) < size:
        return None
    checksum, kind, level, _, own, birth, *_ = fmt.PAGE_HEADER.struct.unpack_from(raw)
    if own != number or kind not in {fmt.BRANCH_KIND, fmt.LEAF_KIND} or (kind == fmt.LEAF_KIND) != (level == 0):
        return None
    if level >= fmt.MAX_DEPTH or birth > fmt.MAX_U48 or checksum != crc32c(memoryview(raw)[fmt.CHECKSUM_SIZE :]):
        return None

    def refuse(invariant: str, message: str) -> NoReturn:
        raise CorruptionError(number, f"{message} ({invariant})")

    try:
        page = take_apart(raw, Bounds(level, b"", None), refuse)
        if page is not None and level:
            references(page)
    except CorruptionError:
        return None
    return page


def _orphan(raw: bytes, number: int, page: Page) -> Orphan:
    checksum, _, level, cells, _, birth, *_ = fmt.PAGE_HEADER.struct.unpack_from(raw)
    kids = tuple(references(page)) if level else ()
    first = page.prefix + page.suffixes[1 if level else 0]
    last = page.prefix + page.suffixes[-1]
    entries = sum(kid.count for kid in kids) if level else cells
    return Orphan(number, birth, checksum, level, first, last, entries, kids)


def find_orphans(
    source: Source, size: int, wanted: Callable[[int], bool], tick: Progress, start: int = fmt.FIRST_DATA_PAGE
) -> dict[int, Orphan]:
    """Every page that holds by itself, of those that are `wanted`, by number. O(file)."""
    found: dict[int, Orphan] = {}
    pages = source.size() // size
    step = _READ // size
    for first in range(start, pages, step):
        numbers = range(first, min(first + step, pages))
        chosen = [number for number in numbers if wanted(number)]
        tick(first, pages)
        if not chosen:
            continue
        try:
            block = source.read(first * size, len(numbers) * size)
        except OSError:  # a sector that cannot be read: page by page
            block = b""
        for number in chosen:
            at = (number - first) * size
            raw = block[at : at + size] if block else _read_alone(source, number, size)
            page = page_alone(raw, number, size)
            if page is not None:
                found[number] = _orphan(raw, number, page)
    return found


def _read_alone(source: Source, number: int, size: int) -> bytes:
    try:
        return source.read(number * size, size)
    except OSError:
        return b""


class Orphans:
    """The trees that orphans form."""

    def __init__(self, found: dict[int, Orphan]) -> None:
        self._found = found
        led_to = {
            kid.number
            for orphan in found.values()
            for kid in orphan.kids
            if self.names(kid) and found[kid.number].level == orphan.level - 1
        }
        # A page may be led to by an old and by a new branch; the newest root comes first, and takes it.
        self.roots: Final = sorted(
            (orphan for number, orphan in found.items() if number not in led_to),
            key=lambda orphan: (-orphan.birth, -orphan.level, orphan.number),
        )

    def names(self, ref: fmt.Reference) -> bool:
        """Whether the page that `ref` leads to is one of the orphans, in this very version (I3)."""
        orphan = self._found.get(ref.number)
        return orphan is not None and (orphan.birth, orphan.checksum) == (ref.birth, ref.checksum)

    def get(self, number: int) -> Orphan:
        """The orphan with this page number."""
        return self._found[number]

    def leaves(self, root: Orphan, taken: set[int]) -> Iterator[Orphan]:
        """The leaves below an orphan that are not `taken` yet, in key order; they are taken then."""
        stack = [root]
        while stack:
            orphan = stack.pop()
            if orphan.number in taken:
                continue
            taken.add(orphan.number)
            if not orphan.level:
                yield orphan
                continue
            stack.extend(
                self._found[kid.number]
                for kid in reversed(orphan.kids)
                if self.names(kid) and self._found[kid.number].level == orphan.level - 1
            )

    def span(self, root: Orphan) -> tuple[bytes, bytes]:
        """The first and the last key below an orphan, as far as its pages are there. O(pages below)."""
        spans = [(leaf.first, leaf.last) for leaf in self.leaves(root, set())]
        if not spans:
            return root.first, root.last
        return min(first for first, _ in spans), max(last for _, last in spans)


def entries_of(state: State, orphan: Orphan) -> Iterator[tuple[bytes, bytes | None]]:
    """The entries of an orphan leaf; None for a value whose overflow run does not verify."""
    raw = state.source.read(orphan.number * state.page_size, state.page_size)
    page = page_alone(raw, orphan.number, state.page_size)
    if page is None:  # it was whole a moment ago
        return
    for index, suffix in enumerate(page.suffixes):
        try:
            value = state.value(page, index)
        except (CorruptionError, OSError):
            yield page.prefix + suffix, None
        else:
            yield page.prefix + suffix, value


def guess_page_size(source: Source) -> int | None:
    """The page size with which most pages hold by themselves, where no meta page tells it; None if none does."""
    best, most = None, 0
    for size in fmt.PAGE_SIZES:
        pages = source.size() // size
        step = max(pages // 500, 1)
        count = 0
        for number in range(fmt.FIRST_DATA_PAGE, pages, step):
            count += page_alone(_read_alone(source, number, size), number, size) is not None
        if count > most:
            best, most = size, count
    return best
