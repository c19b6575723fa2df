"""Changing a tree by copy-on-write: only the path of pages that is touched is copied.

A `Writer` reads like a `Reader`.  The first change below a clean page makes a
dirty copy of it and of everything above it; the old page is noted as freed.
From then on the copy is edited in place, until `seal` gives every dirty page
its number and checksum, children before parents.

    before            put(q)                    a snapshot still sees
       R                 R'                        R
      / \\               / \\                       / \\
     A   B             A   B'                    A   B

Splitting: a full page is rebuilt if holes or a longer prefix give a sixteenth
of it back, else divided where both halves are about even; at the edge of
the tree the full page stays full and the new entry begins a page of its own,
so that sorted input leaves pages filled.  So it does, nearly, where one of many
series of keys seems to go on (`page.series_end`).  A page that falls below a
quarter is merged with a neighbour, or shares evenly with it.

Numbers are given out at the seal, not before: a transaction that aborts has
touched no allocator, and neighbours in key order become neighbours on disk.
But what has come to its end is not kept in memory for long: full pages that
sorted input leaves behind, and values of many pages, are sealed and written
early, some megabytes at a time, so that the disk works while more comes in.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.checksum import crc32c
from cowdb.errors import CorruptionError, Error, KeyNotFoundError, KeySizeError
from cowdb.page import Page, branch_size, leaf_size, middle, series_end, shortest_separator
from cowdb.tree import Reader, as_key, lookup_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowdb.sealed import Sealed
    from cowdb.space import Space

__all__ = ["Changes", "Writer"]

_BLANK: Final = bytes(fmt.REFERENCE_SIZE)
_OVERFLOW_INFO: Final = fmt.OVERFLOW << fmt.LENGTH_BITS | fmt.REFERENCE_SIZE
_HEADER: Final = fmt.PAGE_HEADER.struct

EARLY: Final = 8 << 20
"""Bytes that have come to their end, after which a transaction writes early."""

INTERRUPTED: Final = "a change was interrupted in the middle, so this transaction can only be aborted"
BUSY: Final = (
    "this transaction is in the middle of a change or of its commit, further up in this thread or in another; "
    "let that come to its end first"
)


class Changes:
    """What one write transaction has done so far, over all of its trees.

    `birth` is its id.  `freed` collects runs (start, length, birth) that its
    own state no longer uses.  `dirty` counts bytes of dirty pages and values
    in memory; beyond `budget`, `spill` is called.  `ended` counts those of
    them that will hardly change again; beyond `early`, if they are nearly all
    of it, `due` asks for the same.  `torn` is set while a change is half made, so
    that one which was interrupted is never committed.  `busy` is set during a
    change and during the commit, so that no signal's handler, and no other
    thread, changes anything meanwhile.
    """

    __slots__ = (
        "birth", "budget", "busy", "copied", "dirty", "due", "early", "ended", "foreign", "freed", "inserted",
        "operations", "spill", "torn",
    )  # fmt: skip

    def __init__(self, birth: int, budget: int, spill: Callable[[], None]) -> None:
        self.birth = birth
        self.budget = budget
        self.spill = spill
        self.freed: list[tuple[int, int, int]] = []
        self.foreign = 0  # so many of them at the front are known to be of older transactions
        self.dirty = 0
        self.early = EARLY
        self.ended = 0
        self.due = False
        self.copied = 0
        self.operations = 0
        self.inserted = False
        self.torn = False
        self.busy = False

    def end(self, size: int) -> None:
        """`size` bytes that are dirty have come to their end: nothing but a change of mind changes them again."""
        self.ended += size
        if self.ended >= self.early and 16 * (self.dirty - self.ended) <= self.ended:
            self.due = True

    def written(self) -> None:
        """All that was dirty is in the file."""
        self.dirty = self.ended = 0
        self.due = False

    def less(self, size: int) -> None:
        """`size` dirty bytes are needed no more."""
        self.dirty -= size
        self.ended = min(self.ended, self.dirty)

    def take_own(self) -> list[tuple[int, int, int]]:
        """The freed runs that this transaction itself has written, out of the list. O(runs since the last time)."""
        new = self.freed[self.foreign :]
        own = [run for run in new if run[2] == self.birth]
        if own:
            self.freed[self.foreign :] = [run for run in new if run[2] != self.birth]
        self.foreign = len(self.freed)
        return own

    def close(self) -> None:
        """The commit begins to give out numbers: nothing is written early any more, and only it changes anything."""
        self.budget = self.early = sys.maxsize
        self.due = False
        self.busy = True


class Writer(Reader):
    """A tree that is being changed by one write transaction."""

    __slots__ = (
        "_greatest", "_order", "_sealed", "_slack", "_tail", "branch_pages", "changes", "inline_limit",
        "inner", "key_limit", "large", "leaf_pages", "overflow_pages", "page_size", "pending", "version",
    )  # fmt: skip

    def __init__(self, space: Space, descriptor: fmt.Descriptor, changes: Changes) -> None:
        super().__init__(space, descriptor)
        self.changes = changes
        self.inner = False  # the catalog and the free tree, which the commit itself changes
        self._sealed = descriptor
        self._order: list[tuple[Page, list[tuple[int, Page]]]] = []  # what dirty_pages found, for the seal
        self.branch_pages = descriptor.branch_pages
        self.leaf_pages = descriptor.leaf_pages
        self.overflow_pages = descriptor.overflow_pages
        self.page_size = space.page_size
        self.key_limit = fmt.max_key_size(space.page_size)
        self.inline_limit = fmt.max_inline_value(space.page_size)
        self._slack = space.page_size - space.page_size // 16
        self.large: dict[int, bytes] = {}  # overflow values that are not written yet, by their number
        self.pending = 0  # the number of the next one
        self.version = 0  # rises with every change, for iterators
        self._tail: list[Page] | None = None  # the dirty path to the last leaf, while it is known
        self._greatest = b""  # the last key, while _tail is known

    @property
    def changed(self) -> bool:
        """True if there is anything to seal or the root has moved."""
        return self.version > 0

    def descriptor(self) -> fmt.Descriptor:
        """The tree as sealed so far."""
        if min(self.branch_pages, self.leaf_pages, self.overflow_pages) < 0:
            raise CorruptionError(-1, "a tree's descriptor counts fewer pages than the tree has")
        root = fmt.unpack_reference(self.bits.to_bytes(fmt.REFERENCE_SIZE, "little"))
        return fmt.Descriptor(root, self.depth, self.branch_pages, self.leaf_pages, self.overflow_pages)

    def fetch(self, raw: bytes) -> bytes:
        """The value behind an overflow reference; one that is not written yet is in memory."""
        reference = fmt.unpack_reference(raw)
        return super().fetch(raw) if reference.number else self._pending_value(reference.checksum)

    def _pending_value(self, number: int) -> bytes:
        """An overflow value that is not written yet. Only a forged page can name one that there is not."""
        value = self.large.get(number)
        if value is None:
            raise CorruptionError(-1, "an overflow value without a page")
        return value

    # ------------------------------------------------------------ copies

    def _own(self, parent: Page, index: int) -> Page:
        """Make child `index` of a dirty branch dirty."""
        assert parent.kids is not None
        kid = parent.kids[index]
        if kid is None:
            bits = parent.reference(index)
            torn = self.changes.torn
            kid = self._copy(bits, parent.level - 1)
            parent.kids[index] = kid
            self.changes.torn = torn
        return kid

    def _copy(self, bits: int, level: int) -> Page:
        page = self.load(bits, level)
        changes = self.changes
        kid = page.copy(self.page_size, page.cells if not level else bits >> 96 & fmt.MAX_U48)
        changes.torn = True  # until the copy is in its place: what is free must be reachable no more (I1)
        changes.freed.append((bits & fmt.MAX_U48, 1, bits >> 48 & fmt.MAX_U48))
        changes.copied += 1
        changes.dirty += self.page_size
        return kid

    def _own_root(self) -> Page | None:
        if self.page is None and self.depth:
            self.open_space()
            torn = self.changes.torn
            self.page = self._copy(self.bits, self.depth - 1)
            self.version += 1  # whatever fails from here on, the root moves, for its old page is free
            self.changes.torn = torn
        return self.page

    def _own_path(self, key: bytes) -> tuple[list[tuple[Page, int]], Page]:
        """The dirty branches that lead to the leaf of `key`, each with its index, and that leaf."""
        page = self._own_root()
        assert page is not None
        path = []
        while page.level:
            index = page.child_index(key)
            assert page.kids is not None
            kid = page.kids[index]
            if kid is None:
                kid = self._own(page, index)
            path.append((page, index))
            page = kid
        return path, page

    # ------------------------------------------------------------ put

    def put(self, key: object, value: object, *, overwrite: bool = True, append: bool = False) -> bool:
        """Store `value` under `key`; False, and nothing changed, if it is there and `overwrite` is false.

        With `append`, `key` must be greater than every key of the tree
        (`ValueError`).  Raises `KeySizeError`, `TypeError`, `FullError`.  O(log n).
        """
        if key.__class__ is not bytes:
            key = as_key(key)
        if value.__class__ is not bytes:
            value = as_key(value)
        assert isinstance(key, bytes)
        assert isinstance(value, bytes)
        if len(key) > self.key_limit:
            raise KeySizeError(len(key), self.key_limit)
        changes = self.changes
        busy = changes.busy
        if changes.torn or busy:
            self._refuse_unless_inner()
        try:
            changes.busy = True
            if changes.due or changes.dirty > changes.budget:
                changes.spill()
            tail = self._tail
            if tail is not None and key > self._greatest:
                self._insert_last(tail, key, value)
                return True
            if append:
                last = self.edge(last=True)
                if last is not None and key <= last[0]:
                    raise ValueError(f"append: {key!r} is not greater than the last key {last[0]!r}")
            if not overwrite and self.find(key) is not None:
                return False
            self._put(key, value)
            return True
        finally:
            changes.busy = busy

    def _refuse_unless_inner(self) -> None:
        """Something is half made: see `Changes`. `ClosedError` if it has come to its end."""
        self.open_space()
        if self.changes.torn:
            raise Error(INTERRUPTED)
        if not self.inner:
            raise Error(BUSY)

    def _put(self, key: bytes, value: bytes) -> None:
        changes = self.changes
        if self._own_root() is None:
            self.open_space()
            changes.torn = True
            info, payload = self._store(value)
            self.page = Page.build_leaf([(key, info, payload)], self.page_size)
            self.depth = self.leaf_pages = 1
            changes.dirty += self.page_size
        else:
            path, leaf = self._own_path(key)
            index = leaf.lower_bound(key)
            changes.torn = True
            info, payload = self._store(value)
            if leaf.has_key(index, key):
                if self.overflow_pages:
                    self._release(*leaf.payload(index))
                if not leaf.replace(index, info, payload):
                    leaf.remove(index)
                    leaf.count -= 1
                    if leaf.insert(index, key, info, payload):
                        leaf.count += 1
                    else:
                        self._divide_leaf(path, leaf, index, (key, info, payload))
            else:
                for page, _ in path:
                    page.count += 1
                if leaf.insert(index, key, info, payload):
                    leaf.count += 1
                    if index == leaf.cells - 1 and all(at == page.cells - 1 for page, at in path):
                        self._tail = [page for page, _ in path]
                        self._tail.append(leaf)
                        self._greatest = key
                else:
                    self._divide_leaf(path, leaf, index, (key, info, payload))
        self.version += 1
        changes.operations += 1
        changes.inserted = True
        changes.torn = False

    def _insert_last(self, tail: list[Page], key: bytes, value: bytes) -> None:
        """Put a key that is greater than all others: the way to the last leaf is known."""
        changes = self.changes
        self.open_space()
        leaf = tail[-1]
        changes.torn = True
        if len(value) <= self.inline_limit:
            info, payload = len(value), value
        else:
            info, payload = self._store(value)
        for page in tail:
            page.count += 1
        if leaf.insert(leaf.cells, key, info, payload):
            self._greatest = key
        else:
            leaf.count -= 1
            path = [(page, page.cells - 1) for page in tail[:-1]]
            self._divide_leaf(path, leaf, leaf.cells, (key, info, payload))
            last = self._current([])
            tail = [last]
            while last.level:
                last = self._own(last, last.cells - 1)
                tail.append(last)
            self._tail = tail
            self._greatest = key
        self.version += 1
        changes.operations += 1
        changes.inserted = True
        changes.torn = False

    def __setitem__(self, key: object, value: object) -> None:
        """Store `value` under `key`. O(log n)."""
        self.put(key, value)

    def update(self, pairs: Iterable[Any]) -> None:
        """Put every pair.  Sorted input is fastest and leaves well filled pages. O(log n) each."""
        put = self.put
        for pair in pairs:
            try:
                key, value = pair
            except (TypeError, ValueError):
                raise TypeError(f"update takes a mapping or pairs of key and value, not {pair!r}") from None
            put(key, value)

    def _store(self, value: bytes) -> tuple[int, bytes]:
        """Kind and length, and payload, that stand for `value` in a leaf."""
        length = len(value)
        if length <= self.inline_limit:
            return length, value
        number = self.pending
        self.pending += 1
        self.large[number] = value
        self.overflow_pages += fmt.overflow_pages(length, self.page_size)
        self.changes.dirty += length
        self.changes.end(length)
        return _OVERFLOW_INFO, fmt.Reference(0, self.changes.birth, length, number).pack()

    def _release(self, info: int, payload: bytes) -> None:
        """Free what an entry's payload holds outside its leaf."""
        if info >> fmt.LENGTH_BITS == fmt.OVERFLOW:
            reference = fmt.unpack_reference(payload)
            pages = fmt.overflow_pages(reference.count, self.page_size)
            if reference.number:
                self._free_run(reference.number, pages, reference.birth)
            else:
                self._pending_value(reference.checksum)
                del self.large[reference.checksum]
                self.changes.ended -= reference.count
                self.changes.less(reference.count)
            self.overflow_pages -= pages

    def _free_run(self, number: int, pages: int, birth: int) -> None:
        """Note a run as freed; a forged reference frees nothing outside the file or of the future (I4, I10)."""
        last = self.open_space().pages - pages
        if not fmt.FIRST_DATA_PAGE <= number <= last or birth > self.changes.birth:
            raise CorruptionError(number, f"a reference to {pages} pages, born in {birth}, makes no sense")
        self.changes.freed.append((number, pages, birth))

    # ------------------------------------------------------------ split

    def _swap(self, path: list[tuple[Page, int]], page: Page) -> None:
        """Let `page` stand where `path` leads."""
        if path:
            parent, index = path[-1]
            assert parent.kids is not None
            parent.kids[index] = page
        else:
            self.page = page

    def _divide_leaf(
        self, path: list[tuple[Page, int]], leaf: Page, index: int, entry: tuple[bytes, int, bytes]
    ) -> None:
        """Insert where `leaf` as it is has no room: rebuild it, or divide it."""
        self._tail = None
        size = self.page_size
        entries = leaf.leaf_entries()
        entries.insert(index, entry)
        if leaf_size(entries) <= self._slack:
            self._swap(path, Page.build_leaf(entries, size))
            return
        lower, upper = _bounds(path)
        if index == len(entries) - 1 and upper is None:
            place, left, right = index, leaf, Page.build_leaf(entries[index:], size)
            self.changes.end(size)
        elif index == 0 and lower is None:
            place, left, right = 1, Page.build_leaf(entries[:1], size), leaf
        else:
            lengths = [len(key) + len(payload) + 10 for key, _, payload in entries]
            place = series_end([entry[0] for entry in entries], lengths, index, lower, upper)
            if not place or leaf_size(entries[:place]) > size or leaf_size(entries[place:]) > size:
                place = middle(entries, size, leaf_size, lengths, 1)
            left, right = Page.build_leaf(entries[:place], size), Page.build_leaf(entries[place:], size)
        self.leaf_pages += 1
        self.changes.dirty += size
        self._swap(path, left)
        self._add_child(path, shortest_separator(entries[place - 1][0], entries[place][0]), left, right)

    def _add_child(self, path: list[tuple[Page, int]], separator: bytes, left: Page, right: Page) -> None:
        """Insert `right` after `left`, which stands where `path` leads; divides branches upward as needed."""
        size = self.page_size
        while path:
            path = path[:]
            parent, index = path.pop()
            index += 1
            if parent.insert_child(index, separator, right):
                return
            entries = parent.branch_entries()
            entries.insert(index, (separator, _BLANK, right))
            if branch_size(entries) <= self._slack:
                self._swap(path, Page.build_branch(entries, size, parent.level))
                return
            if index == len(entries) - 1 and all(at == page.cells - 1 for page, at in path):
                place = index - 1
            else:
                lengths = [len(key) + fmt.REFERENCE_SIZE + 8 for key, _, _ in entries]
                place = middle(entries, size, branch_size, lengths, 2)
            separator = entries[place][0]
            left = Page.build_branch(entries[:place], size, parent.level)
            right = Page.build_branch(entries[place:], size, parent.level)
            self.branch_pages += 1
            self.changes.dirty += size
            self._swap(path, left)
        self.page = Page.build_branch([(b"", _BLANK, left), (separator, _BLANK, right)], size, left.level + 1)
        self.depth = left.level + 2
        self.branch_pages += 1
        self.changes.dirty += size

    # ------------------------------------------------------------ delete

    def delete(self, key: object) -> bool:
        """Remove `key`; False if it is not there. O(log n)."""
        if key.__class__ is not bytes:
            key = as_key(key)
        assert isinstance(key, bytes)
        changes = self.changes
        busy = changes.busy
        if changes.torn or busy:
            self._refuse_unless_inner()
        try:
            changes.busy = True
            return self._delete(key)
        finally:
            changes.busy = busy

    def _delete(self, key: bytes) -> bool:
        if self.find(key) is None:
            return False
        changes = self.changes
        if changes.due or changes.dirty > changes.budget:
            changes.spill()
        path, leaf = self._own_path(key)
        index = leaf.lower_bound(key)
        changes.torn = True
        self._tail = None
        if self.overflow_pages:
            self._release(*leaf.payload(index))
        leaf.remove(index)
        leaf.count -= 1
        for page, _ in path:
            page.count -= 1
        self.version += 1
        changes.operations += 1
        changes.torn = False
        self._rebalance(path, leaf)
        return True

    def __delitem__(self, key: object) -> None:
        """Remove `key`; `KeyNotFoundError` if it is not there. A slice: as `delete_range`. O(log n)."""
        wanted = lookup_key(key)
        if wanted is None and isinstance(key, slice):
            if key.step is not None:
                raise ValueError("a slice of a tree has no step")
            self.delete_range(key.start, key.stop)
        elif wanted is None or not self.delete(wanted):
            raise KeyNotFoundError(key)

    def _is_small(self, page: Page) -> bool:
        """True if `page` should be merged, or is a branch that leads nowhere else."""
        return page.used() < self.page_size // 4 or (page.level > 0 and page.cells < 2)

    def _rebalance(self, path: list[tuple[Page, int]], page: Page) -> None:
        """Merge a page that has become small, or let it share with a neighbour; then look at its parent."""
        changes = self.changes
        torn = changes.torn
        while self._is_small(page):
            if not path:
                self._shrink_root(page)
                break
            parent, index = path[-1]
            path = path[:-1]
            if not page.cells:
                self._drop_child(path, parent, index)
            else:
                first = index if index + 1 < parent.cells else index - 1
                # Both are made dirty before anything changes: a damaged neighbour leaves the tree as it was, which
                # may be committed with a small page, but not with a branch that leads nowhere else.
                changes.torn = torn or (page.level > 0 and page.cells < 2)
                left, right = self._own(parent, first), self._own(parent, first + 1)
                self._join(path, parent, first, left, right)
            page = self._current(path)
        changes.torn = torn

    def _current(self, path: list[tuple[Page, int]]) -> Page:
        """The dirty page where `path` leads now."""
        if not path:
            if self.page is None:
                self.open_space()  # it has ended meanwhile, out of a signal's handler
            assert self.page is not None
            return self.page
        parent, index = path[-1]
        return self._own(parent, index)

    def _shrink_root(self, root: Page) -> None:
        """An empty leaf makes an empty tree; a branch with one child gives way to that child."""
        if root.level == 0:
            if not root.cells:
                self.page = None
                self.bits = self.depth = self.leaf_pages = 0
            return
        while root.level and root.cells == 1:
            assert root.kids is not None
            self.branch_pages -= 1
            self.depth = root.level
            self.page = root.kids[0]
            if self.page is None:
                self.bits = root.reference(0)
                return
            root = self.page

    def _drop_child(self, path: list[tuple[Page, int]], parent: Page, index: int) -> None:
        """Take the empty leaf `index` out of `parent`, which stands where `path` leads."""
        self.changes.torn = True
        self.leaf_pages -= 1
        entries = parent.branch_entries()
        del entries[index]
        self._swap(path, Page.build_branch(entries, self.page_size, parent.level))

    def _join(self, path: list[tuple[Page, int]], parent: Page, first: int, left: Page, right: Page) -> None:
        """Merge children `first` and `first` + 1 of `parent`, or divide their entries evenly."""
        size = self.page_size
        separator = parent.key(first + 1)
        self.changes.torn = True
        both: list[Any]
        if left.level:
            low, high = left.branch_entries(), right.branch_entries()
            both = [*low, (separator, *high[0][1:]), *high[1:]]
            fits = branch_size(both) <= self._slack
        else:
            both = left.leaf_entries() + right.leaf_entries()
            fits = leaf_size(both) <= self._slack

        def build(entries: list[Any]) -> Page:
            return Page.build_branch(entries, size, left.level) if left.level else Page.build_leaf(entries, size)

        parent.remove(first + 1)
        if fits:
            self._swap([*path, (parent, first)], build(both))
            if left.level:
                self.branch_pages -= 1
            else:
                self.leaf_pages -= 1
            self.changes.less(size)
        else:
            if left.level:
                place = middle(both, size, branch_size, [len(entry[0]) + 30 for entry in both], 2)
                separator = both[place][0]
            else:
                place = middle(both, size, leaf_size, [len(entry[0]) + len(entry[2]) + 10 for entry in both], 1)
                separator = shortest_separator(both[place - 1][0], both[place][0])
            new_left, new_right = build(both[:place]), build(both[place:])
            self._swap([*path, (parent, first)], new_left)
            self._add_child([*path, (parent, first)], separator, new_left, new_right)

    # ------------------------------------------------------------ delete a range

    def delete_range(self, start: bytes | None, stop: bytes | None) -> int:
        """Remove the entries with start <= key < stop (None: no bound); how many there were.

        Whole subtrees are freed from the references above them; leaves inside
        the range are read only where the tree has overflow values.
        O(log n + pages freed).
        """
        if start is not None and stop is not None and start >= stop:
            return 0
        self.open_space()
        changes = self.changes
        busy = changes.busy
        if changes.torn or busy:
            self._refuse_unless_inner()
        try:
            changes.busy = True
            return self._delete_range(start, stop)
        finally:
            changes.busy = busy

    def _delete_range(self, start: bytes | None, stop: bytes | None) -> int:
        before = len(self)
        root = self._own_root()
        if root is None:
            return 0
        self._tail = None
        self.changes.torn = True
        self.version += 1
        self.changes.operations += 1
        page = self._cut(root, start, stop)
        if page is None:
            self.page = None
            self.bits = self.depth = 0
        else:
            self.page = page
            for key in (start, stop):
                if self.page is not None:
                    self._mend(key or b"")
        self.changes.torn = False
        return before - len(self)

    def _cut(self, page: Page, start: bytes | None, stop: bytes | None) -> Page | None:
        """What is left of dirty `page` without the range; None if nothing is."""
        if not page.level:
            entries = page.leaf_entries()
            first = page.lower_bound(start) if start is not None else 0
            last = page.lower_bound(stop) if stop is not None else page.cells
            if self.overflow_pages:
                for _, info, payload in entries[first:last]:
                    self._release(info, payload)
            del entries[first:last]
            if entries:
                return Page.build_leaf(entries, self.page_size)
            self.leaf_pages -= 1
            self.changes.less(self.page_size)
            return None
        first = page.child_index(start) if start is not None else 0
        last = page.child_index(stop) if stop is not None else page.cells - 1
        entries_b = page.branch_entries()
        kept = entries_b[:first]
        for index in range(first, last + 1):
            separator, _, kid = entries_b[index]
            low = start if index == first else None
            high = stop if index == last else None
            if low is None and high is None:
                if kid is not None:
                    self._free_dirty(kid)
                else:
                    self._free_clean(page.reference(index), page.level - 1)
                continue
            rest = self._cut(self._own(page, index), low, high)
            if rest is not None:
                kept.append((separator, _BLANK, rest))
        kept += entries_b[last + 1 :]
        if kept:
            return Page.build_branch(kept, self.page_size, page.level)
        self.branch_pages -= 1
        self.changes.less(self.page_size)
        return None

    def _mend(self, key: bytes) -> None:
        """Bring the pages on the way to `key`, which a cut may have left small, back into balance."""
        for _ in range(4 * self.depth + 4):
            if self.page is None:
                return
            path, leaf = self._own_path(key)
            pages = [*(page for page, _ in path), leaf]
            # From the top: a branch that leads nowhere else gets a neighbour before its child needs one.
            lone = next((depth for depth, page in enumerate(pages) if page.level and page.cells < 2), None)
            small = next((depth for depth in range(len(path), -1, -1) if self._is_small(pages[depth])), None)
            depth = small if lone is None else lone
            if depth is None:
                return
            self._rebalance(path[:depth], pages[depth])

    def _free_dirty(self, page: Page) -> None:
        """Forget a dirty subtree; what is clean below it becomes free."""
        self.changes.less(self.page_size)
        if not page.level:
            self.leaf_pages -= 1
            if self.overflow_pages:
                for _, payload in page.overflow_entries():
                    self._release(_OVERFLOW_INFO, payload)
            return
        self.branch_pages -= 1
        assert page.kids is not None
        for index, kid in enumerate(page.kids):
            if kid is not None:
                self._free_dirty(kid)
            else:
                self._free_clean(page.reference(index), page.level - 1)

    def _free_clean(self, bits: int, level: int) -> None:
        """Free a clean subtree.  Its leaves are looked at only for overflow values."""
        self._free_run(bits & fmt.MAX_U48, 1, bits >> 48 & fmt.MAX_U48)
        if self.leaf_pages <= 0 or self.branch_pages < 0:
            # Pages that refer to one child many times could make this endless.
            raise CorruptionError(bits & fmt.MAX_U48, "a tree has more pages than its descriptor counts")
        if not level:
            self.leaf_pages -= 1
            if self.overflow_pages:
                for _, payload in self.load(bits, 0).overflow_entries():
                    self._release(_OVERFLOW_INFO, payload)
            return
        self.branch_pages -= 1
        page = self.load(bits, level)
        for index in range(page.cells):
            self._free_clean(page.reference(index), level - 1)

    # ------------------------------------------------------------ seal

    def patch(self, key: bytes, value: bytes) -> None:
        """Overwrite the value of `key`, in a dirty leaf, with one of the same length."""
        _, leaf = self._own_path(key)
        leaf.set_payload(leaf.lower_bound(key), value)

    def dirty_pages(self) -> tuple[int, list[int]]:
        """How many single pages the seal will write, and the lengths in pages of its overflow runs."""
        self._order = _dirty_below(self.page) if self.page is not None else []
        if not self.large:
            return len(self._order), []
        return len(self._order), [fmt.overflow_pages(len(value), self.page_size) for value in self.large.values()]

    def seal(self, numbers: Iterator[int], place_run: Callable[[int], int], sealed: Sealed) -> fmt.Descriptor:
        """Give every dirty page its number, birth and checksum, children first, and add it to `sealed`.

        `dirty_pages` was called before.  Afterwards the tree is clean: its root
        is a reference again (I3).  The first numbers go to branches, the root's
        first of all: they live shortest, so the lowest pages, beside the meta
        pages, are written again and again, and leaves stay put.
        """
        if not self.version:
            return self._sealed
        self.version += 1  # an iteration may hold references to values, which are written now
        order, self._order = self._order, []
        branches = [next(numbers) for page, _ in order if page.level]
        birth = self.changes.birth
        for page, kids in order:
            for index, kid in kids:
                page.set_reference(index, kid.bits)
            if not page.level and self.large:
                self._seal_values(page, place_run, sealed)
            number = branches.pop() if page.level else next(numbers)
            self.bits = page.bits = page.seal(number, birth)
            sealed.add(number, page.data)
        self.page = self._tail = None
        self.large.clear()
        return self.descriptor()

    def _seal_values(self, leaf: Page, place_run: Callable[[int], int], sealed: Sealed) -> None:
        """Lay out the values of a dirty leaf that are not written yet, and put references to them."""
        for index, raw in leaf.overflow_entries():
            reference = fmt.unpack_reference(raw)
            if not reference.number:
                value = self._pending_value(reference.checksum)
                leaf.set_payload(index, self._seal_value(value, place_run, sealed))

    def _seal_value(self, value: bytes, place_run: Callable[[int], int], sealed: Sealed) -> bytes:
        """Lay a value out as an overflow run; the packed reference to it."""
        pages = fmt.overflow_pages(len(value), self.page_size)
        number = place_run(pages)
        birth = self.changes.birth
        header = bytearray(_HEADER.pack(0, fmt.OVERFLOW_KIND, 0, 0, number, birth, 0, 0, 0, 0))
        rest = bytes(pages * self.page_size - fmt.HEADER_SIZE - len(value))
        checksum = crc32c(rest, crc32c(value, crc32c(memoryview(header)[fmt.CHECKSUM_SIZE :])))
        header[: fmt.CHECKSUM_SIZE] = checksum.to_bytes(fmt.CHECKSUM_SIZE, "little")
        sealed.add(number, (header, value, rest))
        return fmt.Reference(number, birth, len(value), checksum).pack()


def _bounds(path: list[tuple[Page, int]]) -> tuple[bytes | None, bytes | None]:
    """The separators that bound the leaf that `path` leads to; None at the edges of the tree."""
    lower = next((page.key(index) for page, index in reversed(path) if index), None)
    upper = next((page.key(index + 1) for page, index in reversed(path) if index + 1 < page.cells), None)
    return lower, upper


def _dirty_below(page: Page) -> list[tuple[Page, list[tuple[int, Page]]]]:
    """The dirty pages of the subtree below dirty `page`, children before parents, each with its dirty children."""
    if not page.level:
        return [(page, [])]
    kids = page.dirty_kids()
    found: list[tuple[Page, list[tuple[int, Page]]]] = []
    for _, kid in kids:
        if kid.level:
            found += _dirty_below(kid)
        else:
            found.append((kid, []))
    found.append((page, kids))
    return found
