"""One tree of a state, looked at from beside the engine: get, iterate, rank, and the path to a key.

Each page comes verified and taken apart from `inspection.State`, one read at a
time, so damage gives `CorruptionError` at the page where it is met.

    items(start, stop)   counts in the references say which children hold entries of
                         the ranks asked for; only those are entered
    rank(key)            the same counts, added up on the left of the path

Whole leaves are handed on at once: a file has a hundred entries a leaf, and
slicing columns of them is many times quicker than a call an entry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from cowdb import format as fmt
from cowdb.errors import CorruptionError
from cowdb.pagecheck import Bounds, Page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.inspection import State

__all__ = ["Leaf", "Step", "Tree", "cell", "child_bounds", "references", "separators"]


class Step(NamedTuple):
    """A page on the way to a key: its reference, its level, the page, and the cell that was taken in it."""

    ref: fmt.Reference
    level: int
    page: Page
    cell: int
    bounds: Bounds


class Leaf(NamedTuple):
    """A leaf that an iteration came to."""

    ref: fmt.Reference
    page: Page


class Tree:
    """A tree of a state: a sorted set of entries, read only.

    `name` is None for the main tree; `system` is true for the catalog and the free tree.
    """

    def __init__(
        self, state: State, name: str | None, descriptor: fmt.Descriptor, limit: int, *, system: bool = False
    ) -> None:
        self.state = state
        self.system = system
        self.name = name
        self.descriptor = descriptor
        self.limit = limit

    def __len__(self) -> int:
        """Entries, as the reference to the root counts them. O(1)."""
        return self.descriptor.root.count

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None if it is not there. O(log n)."""
        steps = self.path(key)
        if not steps or not self.at(steps[-1], key):
            return None
        return self.value_at(steps[-1])

    def path(self, key: bytes) -> list[Step]:
        """The pages that a search for `key` visits, root first; [] in an empty tree. O(log n)."""
        return list(self.steps(key))

    def steps(self, key: bytes) -> Iterator[Step]:
        """As `path`, one at a time: what comes before a damaged page is seen."""
        if not self.descriptor.depth:
            return
        ref, limit = self.descriptor.root, self.limit
        bounds = Bounds(self.descriptor.depth - 1, b"", None)
        while bounds.level:
            page, refs = self.state.branch(ref, bounds, limit)
            keys = separators(page)
            index = bisect_right(keys, key)
            yield Step(ref, bounds.level, page, index, bounds)
            bounds = child_bounds(bounds, keys, index)
            ref, limit = refs[index], page.birth
        page = self.state.page(ref, bounds, limit)
        suffix = _suffix(page, key)
        index = suffix if isinstance(suffix, int) else bisect_left(page.suffixes, suffix)
        yield Step(ref, 0, page, index, bounds)

    def at(self, step: Step, key: bytes) -> bool:
        """Whether the search that ended in `step` found `key`."""
        page = step.page
        return step.cell < page.cells and page.prefix + page.suffixes[step.cell] == key

    def value_at(self, step: Step) -> bytes:
        """The value of the entry that a search ended at."""
        return self.state.value(step.page, step.cell)

    def rank(self, key: bytes) -> int:
        """How many keys are less than `key`. O(log n)."""
        below = 0
        for step in self.path(key):
            if step.level:
                below += sum(ref.count for ref in references(step.page)[: step.cell])
            else:
                below += step.cell
        return below

    def count(self, start: bytes | None = None, stop: bytes | None = None) -> int:
        """How many keys are in start <= key < stop. O(log n)."""
        first = 0 if start is None else self.rank(start)
        return max((len(self) if stop is None else self.rank(stop)) - first, 0)

    def leaves(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False, skip: int = 0
    ) -> Iterator[tuple[Leaf, list[tuple[bytes, bytes]]]]:
        """The leaves that hold keys of start <= key < stop, each with those entries; the first `skip` entries left out.

        O(log n + entries); memory for one leaf and its values.
        """
        for leaf, low, high in self.ranges(start, stop, reverse=reverse, skip=skip):
            yield leaf, self._entries(leaf.page, low, high, reverse=reverse)

    def items(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False, skip: int = 0
    ) -> Iterator[tuple[bytes, bytes]]:
        """The entries with start <= key < stop in key order, or the reverse, without the first `skip`. O(log n + n)."""
        for leaf, low, high in self.ranges(start, stop, reverse=reverse, skip=skip):
            page = leaf.page
            if page.inline:
                yield from self._entries(page, low, high, reverse=reverse)
                continue
            for index in reversed(range(low, high)) if reverse else range(low, high):  # long values one by one
                yield page.prefix + page.suffixes[index], self.state.value(page, index)

    def keys(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False, skip: int = 0
    ) -> Iterator[bytes]:
        """The keys alone; values are not read. As `items`."""
        for leaf, low, high in self.ranges(start, stop, reverse=reverse, skip=skip):
            page = leaf.page
            keys = [page.prefix + suffix for suffix in page.suffixes[low:high]]
            yield from reversed(keys) if reverse else keys

    def _entries(self, page: Page, low: int, high: int, *, reverse: bool) -> list[tuple[bytes, bytes]]:
        prefix, raw = page.prefix, page.raw
        keys = [prefix + suffix for suffix in page.suffixes[low:high]]
        if page.inline:
            stops = page.stops
            if max(stops) > len(raw):
                raise CorruptionError(-1, "a cell reaches over the end of its page (I10)")
            values = [raw[end:stop] for end, stop in zip(page.ends[low:high], stops[low:high], strict=True)]
        else:
            values = [self.state.value(page, index) for index in range(low, high)]
        entries = list(zip(keys, values, strict=True))
        return entries[::-1] if reverse else entries

    def ranges(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False, skip: int = 0
    ) -> Iterator[tuple[Leaf, int, int]]:
        """Leaves in order, each with the cells low <= index < high that are asked for. As `items`."""
        total = self.count(start, stop) if start is not None or stop is not None else len(self)
        first = 0 if start is None else self.rank(start)
        if skip >= total or total <= 0:
            return
        low, high = (first, first + total - skip) if reverse else (first + skip, first + total)
        for leaf, base in self._leaves_from(low, high, reverse=reverse):
            cells = leaf.page.cells
            yield leaf, max(low - base, 0), min(high - base, cells)

    def _leaves_from(self, low: int, high: int, *, reverse: bool) -> Iterator[tuple[Leaf, int]]:
        """The leaves with entries of rank low <= rank < high, each with the rank of its first entry."""
        if not self.descriptor.depth:
            return
        top = Bounds(self.descriptor.depth - 1, b"", None)
        stack = [(self.descriptor.root, top, self.limit, 0)]
        while stack:
            ref, bounds, limit, base = stack.pop()
            if not bounds.level:
                page = self.state.page(ref, bounds, limit)
                if page.cells != ref.count:
                    raise CorruptionError(
                        ref.number, f"it has {page.cells} entries, the reference says {ref.count} (I6)"
                    )
                yield Leaf(ref, page), base
                continue
            page, refs = self.state.branch(ref, bounds, limit)
            if sum(kid.count for kid in refs) != ref.count:
                raise CorruptionError(ref.number, f"the entries below it are not {ref.count} (I6)")
            keys = separators(page)
            below = []
            for index, kid in enumerate(refs):
                if base < high and base + kid.count > low:
                    below.append((kid, child_bounds(bounds, keys, index), page.birth, base))
                base += kid.count
            stack.extend(below if reverse else reversed(below))


# ---------------------------------------------------------------- pieces


def cell(page: Page, index: int) -> tuple[int, int, int]:
    """Kind, start and stop of the payload of a leaf's cell; raises `CorruptionError` if that cannot be (I10)."""
    at = page.offsets[index]
    word = page.raw[at] | page.raw[at + 1] << 8
    kind, length = word >> fmt.LENGTH_BITS, word & fmt.LENGTH_MASK
    start = page.ends[index]
    if start + length > len(page.raw):
        raise CorruptionError(-1, "a cell reaches over the end of its page (I10)")
    if kind not in {fmt.INLINE, fmt.OVERFLOW} or (kind == fmt.OVERFLOW and length != fmt.REFERENCE_SIZE):
        raise CorruptionError(-1, f"a payload of kind {kind} and {length} bytes (I10)")
    return kind, start, start + length


def separators(page: Page) -> list[bytes]:
    """The keys that divide the children of a branch, one fewer than these."""
    return [page.prefix + suffix for suffix in page.suffixes[1:]]


def references(page: Page) -> list[fmt.Reference]:
    """The references to the children of a branch."""
    size = fmt.REFERENCE_SIZE
    if max(page.ends) + size > len(page.raw):
        raise CorruptionError(-1, "a cell reaches over the end of its page (I10)")
    return [fmt.unpack_reference(page.raw[end : end + size]) for end in page.ends]


def child_bounds(bounds: Bounds, keys: list[bytes], index: int) -> Bounds:
    """What must be true of child `index` of a branch that lies within `bounds` and has the separators `keys`."""
    low = keys[index - 1] if index else bounds.low
    return Bounds(bounds.level - 1, low, keys[index] if index < len(keys) else bounds.high)


def _suffix(page: Page, key: bytes) -> bytes | int:
    """What follows the prefix of a page in `key`; or the place of `key`, if it does not begin with it."""
    prefix = page.prefix
    if key.startswith(prefix):
        return key[len(prefix) :]
    return 0 if key < prefix else page.cells
