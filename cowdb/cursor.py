"""Ordered movement: scans over a range, and a cursor that stays put.

A range is half open, low <= key < high, with None for no bound; an exclusive
low or an inclusive high is the same bound with a zero byte added, because
k + b"\\0" is the next key after k.

    low              high
     |                |
     [ a  b  c ] [ d  e  f ] [ g ...      forward: abc, d    reverse: d, cba

A scan takes a leaf apart at a time.  In a write transaction it notices that its
tree was changed, by the writer's version, and seeks again behind the last key
that it gave.  So does a cursor: what it remembers is a key, and its path into
the tree only saves time.  (LMDB fixes up all cursors at each split and merge
instead; issues ITS 7756, 8238 and 8258 are what that costs.)
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from cowdb.errors import CorruptionError, ReadOnlyError
from cowdb.path import Path
from cowdb.tree import Reader, as_key
from cowdb.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowdb.page import Page

__all__ = ["ITEMS", "KEYS", "VALUES", "Cursor", "after_prefix", "scan"]

KEYS: Final = 0
VALUES: Final = 1
ITEMS: Final = 2

Item = tuple[bytes, bytes]


def after_prefix(prefix: bytes) -> bytes | None:
    """The least key that is greater than every key with this prefix; None if there is none. O(length)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def scan(
    tree: Reader, kind: int, low: bytes | None, high: bytes | None, *, reverse: bool = False, limit: int | None = None
) -> Iterator[Any]:
    """Keys, values or items of `tree` with low <= key < high, in key order or against it.

    O(log n) to begin, then O(1) an entry, amortised.
    """
    if tree.space is None:
        tree.open_space()
    if limit is not None and limit <= 0:
        return iter(())
    if not isinstance(tree, Writer):
        return chain.from_iterable(_batches(tree, kind, low, high, reverse=reverse, limit=limit))
    found: Iterator[Any] = _watchful(tree, low, high, reverse=reverse)
    if kind != ITEMS:
        found = (item[kind] for item in found)
    return found if limit is None else islice(found, limit)


def _clean_leaves(
    tree: Reader, low: bytes | None, high: bytes | None, *, reverse: bool
) -> Iterator[tuple[Page, int, int]]:
    """The same as `_leaves`, of a tree that does not change.

    No path is kept: within a branch that is unpacked one leaf comes after the other,
    else the separator that ends one leads to the next one.  The separators must move
    on, or a forged file could lead round and round (I7); and it may lead to one page
    many times, so more leaves than it has pages are not believed.
    """
    left = tree.open_space().pages
    if reverse:
        while found := tree.leaf_before(high):
            leaf, lower, _, branch, index = found
            last = leaf.cells if high is None else leaf.lower_bound(high)
            while True:
                left -= 1
                if left < 0:
                    raise _endless()
                first = 0
                if low is not None and (lower is None or lower < low):
                    first = leaf.lower_bound(low)
                if last > first:
                    yield leaf, first, last
                if lower is None or (low is not None and lower <= low):
                    return
                if high is not None and lower >= high:
                    raise _endless()
                high = lower
                index -= 1
                if branch is None or index < 1:  # what is below the first child of a branch stands above the branch
                    break
                lower = branch[0][index - 1]
                leaf = tree.load(branch[1][index], 0)
                last = leaf.cells
        return
    at = b"" if low is None else low
    while found := tree.leaf_at(at):
        leaf, _, upper, branch, index = found
        first = leaf.lower_bound(at) if at else 0
        while True:
            left -= 1
            if left < 0:
                raise _endless()
            last = leaf.cells
            if high is not None and (upper is None or high < upper):
                last = leaf.lower_bound(high)
            if last > first:
                yield leaf, first, last
            if upper is None or (high is not None and upper >= high):
                return
            if upper <= at:
                raise _endless()
            at = upper
            index += 1
            if branch is None or index >= len(branch[0]):  # what is above the last child stands above the branch
                break
            upper = branch[0][index]
            leaf = tree.load(branch[1][index], 0)
            first = 0


def _leaves(tree: Reader, low: bytes | None, high: bytes | None, *, reverse: bool) -> Iterator[tuple[Page, int, int]]:
    """Each leaf of the range with the indexes of its first entry and behind its last one.

    A forged file may lead to one page many times: more clean leaves than the file has pages are not believed.
    """
    path = Path(tree)
    left = tree.open_space().pages
    if reverse:
        more = path.edge(last=True) if high is None else path.seek_before(high, inclusive=False)
        while more:
            leaf = path.leaf
            left -= leaf.at > 0  # a dirty page lies in memory of its own
            if left < 0:
                raise _endless()
            first = 0
            if low is not None and leaf.key(0) < low:
                first = leaf.lower_bound(low)
            yield leaf, first, path.index + 1
            more = not first and path.previous_leaf()
        return
    more = path.edge(last=False) if low is None else path.seek(low)
    while more:
        leaf = path.leaf
        left -= leaf.at > 0
        if left < 0:
            raise _endless()
        last = leaf.cells
        if high is not None and leaf.key(last - 1) >= high:
            yield leaf, path.index, leaf.lower_bound(high)
            return
        yield leaf, path.index, last
        more = path.next_leaf()


def _endless() -> CorruptionError:
    return CorruptionError(-1, "a tree has more leaves than the file has pages, or its keys do not rise")


def _batches(
    tree: Reader, kind: int, low: bytes | None, high: bytes | None, *, reverse: bool, limit: int | None = None
) -> Iterator[Iterable[Any]]:
    """The range of an unchanging tree, a list a leaf; an iterator where values are large, which reads one at a time.

    Of the leaf where `limit` is reached, no more is taken apart than that.
    """
    size = (tree.space or tree.open_space()).page_size
    large: list[bytes] = []

    def postpone(reference: bytes) -> Any:
        """Stands for a large value until it is asked for."""
        large.append(reference)
        return large

    try:
        leaves = _leaves if isinstance(tree, Writer) else _clean_leaves
        for leaf, first, last in leaves(tree, low, high, reverse=reverse):
            if limit is not None:
                if last - first > limit:
                    first, last = (last - limit, last) if reverse else (first, first + limit)  # noqa: PLW2901
                limit -= last - first
            if kind == KEYS:
                batch: list[Any] = leaf.keys(first, last, size)
                tree.open_space()  # closed by another thread meanwhile, the leaf may be another by now
            else:
                batch = leaf.items(first, last, size, postpone)
                if tree.space is None:
                    tree.open_space()
                if large:
                    if reverse:
                        batch.reverse()
                        large.reverse()
                    yield _fetched(tree, kind, batch, large)
                    large = []
                    if limit == 0:
                        return
                    continue
                if kind == VALUES:
                    batch = [value for _, value in batch]
            if reverse:
                batch.reverse()
            yield batch
            if limit == 0:
                return
    except CorruptionError:
        tree.open_space()  # closed by another thread meanwhile, it was no damage
        raise


def _fetched(tree: Reader, kind: int, batch: list[Any], large: list[bytes]) -> Iterator[Any]:
    """Entries of a leaf, each with its value; `large` itself stands where the next reference in it leads to one."""
    references = iter(large)
    for key, found in batch:
        value = tree.fetch(next(references)) if found is large else found
        yield value if kind == VALUES else (key, value)


def _watchful(tree: Writer, low: bytes | None, high: bytes | None, *, reverse: bool) -> Iterator[Item]:
    """The range of a tree that its own transaction may change meanwhile."""
    while True:
        version = tree.version
        for batch in _batches(tree, ITEMS, low, high, reverse=reverse):
            for item in batch:
                yield item
                tree.open_space()
                if tree.version != version:
                    break
            else:
                continue
            break
        else:
            return
        # Each time the range must have become smaller, or forged keys would lead round and round.
        if reverse:
            if high is not None and item[0] >= high:
                raise _endless()
            high = item[0]
        else:
            if low is not None and item[0] < low:
                raise _endless()
            low = item[0] + b"\0"


class Cursor:
    """A place in a tree, at an entry or beside where one was.

    It is stable while its own transaction changes the tree: it stays at its
    key, and when that key is deleted, `next` and `prev` go on from where it
    was.  Movements return False where there is nothing, and then the cursor is
    nowhere: `next` starts at the first entry, `prev` at the last.
    """

    __slots__ = ("_key", "_path", "_tree", "_version")

    def __init__(self, tree: Reader) -> None:
        tree.open_space()
        self._tree = tree
        self._key: bytes | None = None
        self._path: Path | None = None  # leads to _key while the tree has _version
        self._version = 0

    def _now(self) -> int:
        tree = self._tree
        tree.open_space()
        return tree.version

    def _go(self, path: Path, move: Callable[..., bool], *args: object, **options: object) -> bool:
        """Go where `move` leads `path`."""
        try:
            found = move(*args, **options)
            key = path.leaf.key(path.index) if found else None
        except CorruptionError:
            self._path = None  # it may lead halfway
            self._now()
            raise
        self._version = self._now()  # after the look, see `tree.Reader`
        self._path = path if found else None
        self._key = key
        return found

    def _stay(self, key: bytes | None) -> NoReturn:
        """Stay at `key`: going on would lead back to where the cursor has been (I7)."""
        self._key = key
        self._path = None
        raise _endless()

    def _there(self) -> Path | None:
        """The path to the entry that the cursor is at; None if it is nowhere or its entry is gone."""
        now = self._now()
        if self._path is not None and self._version == now:
            return self._path
        self._path = None
        if self._key is None:
            return None
        path = self._tree.path()
        try:
            there = path.seek(self._key) and path.leaf.has_key(path.index, self._key)
        except CorruptionError:
            self._now()
            raise
        if there:
            self._path = path
            self._version = now
        return self._path

    def __repr__(self) -> str:
        place = "at no entry" if self._key is None else f"at {self._key!r}"
        return f"<cowdb.Cursor, {place}>"

    # ------------------------------------------------------------ moving

    def first(self) -> bool:
        """Go to the first entry. O(log n)."""
        self._now()
        path = self._tree.path()
        return self._go(path, path.edge, last=False)

    def last(self) -> bool:
        """Go to the last entry. O(log n)."""
        self._now()
        path = self._tree.path()
        return self._go(path, path.edge, last=True)

    def next(self) -> bool:
        """Go to the next entry. O(1) amortised; O(log n) after a change of the tree."""
        path = self._there()
        if path is not None:
            before = self._key
            found = self._go(path, path.forward)
            if found and self._key <= before:  # type: ignore[operator]  # both are keys
                self._stay(before)
            return found
        if self._key is None:
            return self.first()
        path = self._tree.path()
        return self._go(path, path.seek, self._key + b"\0")

    def prev(self) -> bool:
        """Go to the previous entry. O(1) amortised; O(log n) after a change of the tree."""
        path = self._there()
        if path is not None:
            before = self._key
            found = self._go(path, path.backward)
            if found and self._key >= before:  # type: ignore[operator]  # both are keys
                self._stay(before)
            return found
        if self._key is None:
            return self.last()
        path = self._tree.path()
        return self._go(path, path.seek_before, self._key, inclusive=False)

    def seek(self, key: object) -> bool:
        """Go to the first entry whose key is >= `key`. O(log n)."""
        self._now()
        path = self._tree.path()
        return self._go(path, path.seek, as_key(key))

    def seek_exact(self, key: object) -> bool:
        """Go to the entry of `key`. O(log n)."""
        self._now()
        wanted = as_key(key)
        path = self._tree.path()
        return self._go(path, lambda: path.seek(wanted) and path.leaf.has_key(path.index, wanted))

    # ------------------------------------------------------------ looking

    @property
    def item(self) -> Item | None:
        """Key and value of the entry here; None if there is none."""
        path = self._there()
        return None if path is None else self._tree.entry(path)

    @property
    def key(self) -> bytes | None:
        """The key of the entry here; None if there is none."""
        return None if self._there() is None else self._key

    @property
    def value(self) -> bytes | None:
        """The value of the entry here; None if there is none."""
        item = self.item
        return None if item is None else item[1]

    # ------------------------------------------------------------ changing

    def _writer(self) -> Writer:
        if not hasattr(self._tree, "put"):
            raise ReadOnlyError("this cursor belongs to a read transaction; use write()")
        return cast("Writer", self._tree)

    def put(self, key: object, value: object, *, overwrite: bool = True, append: bool = False) -> bool:
        """Store an entry and go to it; False, and the cursor stays, if it is there and `overwrite` is false."""
        stored = self._writer().put(key, value, overwrite=overwrite, append=append)
        if stored:
            self._key = as_key(key)
            self._path = None
        return stored

    def delete(self) -> bool:
        """Remove the entry here; False if there is none. `next` goes on with the one after it."""
        writer = self._writer()
        if self._there() is None:
            return False
        self._path = None
        return writer.delete(self._key)
