"""A tree as a Python mapping: `Tree` to read, `WriteTree` to change, and views of their ranges.

    tree[b"k"]              one value               tree[b"a":b"m"]      a view of a range
    tree.items(prefix=p)    lazy, sized, re-iterable, forward or in reverse

A view holds bounds, not entries: each iteration looks into the tree anew, and
its length comes from the counts in the references, in O(log n).
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeVar, cast, overload

from cowdb import format as fmt
from cowdb.cursor import ITEMS, KEYS, VALUES, Cursor, after_prefix
from cowdb.errors import CorruptionError, KeyNotFoundError
from cowdb.kernel import Reader, Writer, scan
from cowdb.tree import as_key, lookup_key

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Tree", "WriteTree"]

_T = TypeVar("_T")
_MISSING: Final = object()
Item = tuple[bytes, bytes]


def _as_limit(limit: SupportsIndex) -> int:
    """How many entries at most; `TypeError` if it is no whole number."""
    try:
        return index(limit)
    except TypeError:
        raise TypeError(f"limit is a whole number of entries or None, not {limit!r}") from None


class _Range:
    """Bounds in one tree; the base of the three views."""

    def __init__(self, tree: Reader, low: bytes | None, high: bytes | None, reverse: bool, limit: int | None) -> None:
        self._tree = tree
        self._low = low
        self._high = high
        self._reverse = reverse
        self._limit = None if limit is None else _as_limit(limit)

    def _scan(self, kind: int) -> Iterator[Any]:
        return scan(self._tree, kind, self._low, self._high, reverse=self._reverse, limit=self._limit)

    def _covers(self, key: bytes) -> bool:
        if self._limit is not None:
            return any(found == key for found in self._scan(KEYS))
        return (self._low is None or self._low <= key) and (self._high is None or key < self._high)

    def __len__(self) -> int:
        """Entries in the range. O(log n)."""
        tree = self._tree
        high = len(tree) if self._high is None else tree.rank(self._high)
        low = 0 if self._low is None else tree.rank(self._low)
        count = max(0, high - low)
        return count if self._limit is None else min(count, max(0, self._limit))

    def __reversed__(self) -> Any:
        if self._limit is not None:
            raise TypeError("a view with a limit has no reverse; ask for it with reverse=True")
        return type(self)(self._tree, self._low, self._high, not self._reverse, None).__iter__()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        order = ", in reverse" if self._reverse else ""
        return f"<{type(self).__name__} of keys from {self._low!r} to {self._high!r}{order}>"


class TreeKeys(_Range, KeysView[bytes]):
    """The keys of a range."""

    def __iter__(self) -> Iterator[bytes]:
        return self._scan(KEYS)

    def __contains__(self, key: object) -> bool:
        wanted = lookup_key(key)
        return wanted is not None and self._covers(wanted) and wanted in self._tree


class TreeValues(_Range, ValuesView[bytes]):
    """The values of a range, in key order."""

    def __iter__(self) -> Iterator[bytes]:
        return self._scan(VALUES)

    def __contains__(self, value: object) -> bool:
        return any(found == value for found in self)


class TreeItems(_Range, ItemsView[bytes, bytes]):
    """The items of a range."""

    def __iter__(self) -> Iterator[Item]:
        return self._scan(ITEMS)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        wanted = lookup_key(item[0])
        # None, which the lookup of a missing key gives, equals no value.
        return wanted is not None and item[1] is not None and self._covers(wanted) and self._tree.get(wanted) == item[1]


def _bounds(
    start: object, stop: object, prefix: object, *, include_start: bool = True, include_stop: bool = False
) -> tuple[bytes | None, bytes | None]:
    """The half-open range that these arguments of a public method mean."""
    low = None if start is None else as_key(start)
    high = None if stop is None else as_key(stop)
    if low is not None and not include_start:
        low += b"\0"
    if high is not None and include_stop:
        high += b"\0"
    if prefix is not None:
        stem = as_key(prefix)
        end = after_prefix(stem)
        low = stem if low is None else max(low, stem)
        if end is not None:
            high = end if high is None else min(high, end)
    return low, high


class _Readable(Mapping[bytes, bytes]):
    """What a tree can be asked, on top of a `Reader`."""

    __slots__ = ()
    __hash__ = object.__hash__

    def _reader(self) -> Reader:
        return cast("Reader", self)

    @overload
    def __getitem__(self, key: slice, /) -> ItemsView[bytes, bytes]: ...
    @overload
    def __getitem__(self, key: Any, /) -> bytes: ...
    def __getitem__(self, key: Any, /) -> bytes | ItemsView[bytes, bytes]:
        """The value of `key` (`KeyNotFoundError` if there is none), or a view of the items of a slice. O(log n)."""
        value = self.get(key, _MISSING) if key.__class__ is not slice else _MISSING
        if value is _MISSING:
            if isinstance(key, slice):
                if key.step is not None:
                    raise ValueError("a slice of a tree has no step")
                return self.items(key.start, key.stop)
            raise KeyNotFoundError(key)
        return cast("bytes", value)

    def __iter__(self) -> Iterator[bytes]:
        """The keys in order."""
        return scan(self._reader(), KEYS, None, None)

    def __reversed__(self) -> Iterator[bytes]:
        """The keys against their order."""
        return scan(self._reader(), KEYS, None, None, reverse=True)

    def __eq__(self, other: object) -> bool:
        """Equal entries, as for any mapping. O(n)."""
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return len(self) == len(other) and all(other.get(key) == value for key, value in self.items())

    def keys(
        self,
        start: object = None,
        stop: object = None,
        *,
        prefix: object = None,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
        limit: int | None = None,
    ) -> KeysView[bytes]:
        """A view of the keys from `start` to `stop`, or with `prefix`. O(1), then O(log n) to iterate."""
        low, high = _bounds(start, stop, prefix, include_start=include_start, include_stop=include_stop)
        return TreeKeys(self._reader(), low, high, reverse, limit)

    def values(
        self,
        start: object = None,
        stop: object = None,
        *,
        prefix: object = None,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
        limit: int | None = None,
    ) -> ValuesView[bytes]:
        """A view of the values of a range of keys, in key order."""
        low, high = _bounds(start, stop, prefix, include_start=include_start, include_stop=include_stop)
        return TreeValues(self._reader(), low, high, reverse, limit)

    def items(
        self,
        start: object = None,
        stop: object = None,
        *,
        prefix: object = None,
        reverse: bool = False,
        include_start: bool = True,
        include_stop: bool = False,
        limit: int | None = None,
    ) -> ItemsView[bytes, bytes]:
        """A view of the items of a range of keys, in key order."""
        low, high = _bounds(start, stop, prefix, include_start=include_start, include_stop=include_stop)
        return TreeItems(self._reader(), low, high, reverse, limit)

    def first(self) -> Item | None:
        """The item with the least key, or None. O(log n)."""
        return self._reader().edge(last=False)

    def last(self) -> Item | None:
        """The item with the greatest key, or None. O(log n)."""
        return self._reader().edge(last=True)

    def peekitem(self, index: int = -1) -> Item:
        """The item at `index` in key order, negative from the end; `IndexError` outside. O(log n)."""
        tree = self._reader()
        count = len(tree)
        position = index + count if index < 0 else index
        if not 0 <= position < count:
            raise IndexError(f"index {index} of a tree of {count} entries")
        return tree.select(position)

    def bisect_left(self, key: object) -> int:
        """The number of entries whose key is less than `key`. O(log n)."""
        return self._reader().rank(as_key(key))

    def bisect_right(self, key: object) -> int:
        """The number of entries whose key is not greater than `key`. O(log n)."""
        return self._reader().rank(as_key(key) + b"\0")

    bisect = bisect_right

    def count(self, start: object = None, stop: object = None, *, prefix: object = None) -> int:
        """The number of entries with start <= key < stop, or with `prefix`. O(log n)."""
        low, high = _bounds(start, stop, prefix)
        return len(TreeKeys(self._reader(), low, high, False, None))

    def cursor(self) -> Cursor:
        """A cursor, at no entry yet. O(1)."""
        return Cursor(self._reader())

    def __repr__(self) -> str:
        state = "closed" if self._reader().space is None else f"{len(self)} entries"
        return f"<cowdb.{type(self).__name__}, {state}>"


class Tree(Reader, _Readable):
    """A tree of a snapshot: a `Mapping` of bytes to bytes, in key order, that never changes.

    `get(key, default)`, `floor(key)` and `ceiling(key)` take any bytes-like key.
    """

    __slots__ = ()

    def __init__(self, space: Any, descriptor: fmt.Descriptor, pin: Callable[[], Any]) -> None:
        """`pin` gives a mapping that keeps the snapshot alive as long as it is held itself."""
        super().__init__(space, descriptor)
        self._pin = pin

    def floor(self, key: object) -> Item | None:
        """The item with the greatest key that is <= `key`, or None. O(log n)."""
        return super().floor(as_key(key))

    def ceiling(self, key: object) -> Item | None:
        """The item with the least key that is >= `key`, or None. O(log n)."""
        return super().ceiling(as_key(key))

    def get_view(self, key: object) -> memoryview | None:
        """The value of `key` as a read-only memoryview, without a copy if it is large; None if there is none.

        The view stays valid as long as it, or a slice of it, is held, also after
        the transaction and the database have been closed: until then it pins its
        snapshot, so that its pages are not used again.
        """
        wanted = lookup_key(key)
        found = None if wanted is None else self.find(wanted)
        return None if found is None else _view(self, self._pin, *found)


class WriteTree(Writer, _Readable, MutableMapping[bytes, bytes]):
    """A tree in a write transaction: a `MutableMapping` of bytes to bytes, in key order."""

    __slots__ = ()

    def pinning(self) -> Callable[[], Any] | None:
        """What gives a mapping that keeps the state alive on which the transaction was begun; None: there is none."""
        pin: Callable[[], Any] | None = self._pin
        return pin

    def floor(self, key: object) -> Item | None:
        """The item with the greatest key that is <= `key`, or None. O(log n)."""
        return super().floor(as_key(key))

    def ceiling(self, key: object) -> Item | None:
        """The item with the least key that is >= `key`, or None. O(log n)."""
        return super().ceiling(as_key(key))

    @overload
    def pop(self, key: object, /) -> bytes: ...
    @overload
    def pop(self, key: object, /, default: bytes | _T) -> bytes | _T: ...
    def pop(self, key: object, /, default: object = _MISSING) -> object:
        """Remove `key` and give its value, or `default` if it is not there. O(log n)."""
        value = self.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise KeyNotFoundError(key)
            return default
        self.delete(key)
        return value

    def popitem(self, index: int = -1) -> Item:
        """Remove the item at `index` in key order and give it; `KeyNotFoundError` if the tree is empty. O(log n)."""
        if not len(self):
            raise KeyNotFoundError("popitem: the tree is empty")
        item = self.peekitem(index)
        super().delete(item[0])
        return item

    def setdefault(self, key: object, default: object = b"", /) -> bytes:
        """The value of `key`; stores `default` first if it is not there. O(log n)."""
        value = self.get(as_key(key))
        if value is None:
            value = as_key(default)
            self.put(key, value)
        return value

    def update(self, pairs: Any = (), /) -> None:  # type: ignore[override]  # keys are bytes, so no keywords
        """Put every pair of a mapping or of an iterable of pairs. Sorted input is fastest. O(log n) each."""
        Writer.update(self, pairs.items() if hasattr(pairs, "items") else pairs)

    def clear(self) -> None:
        """Remove every entry. O(pages)."""
        super().delete_range(None, None)

    def delete_range(self, start: object = None, stop: object = None, *, prefix: object = None) -> int:
        """Remove the entries with start <= key < stop (None: no bound), or with `prefix`; how many there were.

        O(log n + pages); the entries themselves are not looked at one by one.
        """
        low, high = _bounds(start, stop, prefix)
        return super().delete_range(low, high)

    def get_view(self, key: object) -> memoryview | None:
        """The value of `key` as a read-only memoryview; see `Tree.get_view`."""
        wanted = lookup_key(key)
        found = None if wanted is None else self.find(wanted)
        if found is None:
            return None
        info, payload = found
        pin = self.pinning()
        if info >> fmt.LENGTH_BITS == fmt.OVERFLOW:
            reference = fmt.unpack_reference(payload)
            if pin is None or reference.birth == self.changes.birth:
                # A value of this very transaction, or of one before it that is not published yet: its pages are
                # nobody's snapshot.
                return memoryview(self.fetch(payload))
        return _view(self, pin, info, payload)


def _view(tree: Reader, pin: Callable[[], Any] | None, info: int, payload: bytes) -> memoryview:
    """A view of the value behind a leaf entry: of a copy if it lies in the leaf, else of the mapping itself."""
    if pin is None or info >> fmt.LENGTH_BITS != fmt.OVERFLOW:
        return memoryview(tree.value(info, payload))
    offset, length = tree.open_space().overflow(payload)
    view = memoryview(pin())[offset : offset + length].toreadonly()
    if len(view) < length:  # I10: what is pinned ends with the snapshot's pages, and no sound reference leads beyond
        raise CorruptionError(offset // tree.open_space().page_size, "an overflow run leads outside the snapshot")
    return view
