"""Iteration: a range of a tree for ``async for``.

Entries come in batches, each fetched by a thread: one hop between threads for up to a thousand entries.  In a
snapshot the next batch is fetched while the caller looks at the one before, and never more than that:

    thread      batch 1   batch 2             batch 3
    task                  entries of batch 1  entries of batch 2

In a write transaction there is no fetching ahead.  When the transaction changes the tree, the rest of the batch is
stale; it is forgotten, and the walk goes on behind the last entry that was given, as `cowdb.cursor.scan` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypedDict, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import Future

    from cowdb.views import Tree, WriteTree

__all__ = ["RangeOptions", "Source", "View"]

_T = TypeVar("_T")
Item = tuple[bytes, bytes]

FIRST_BATCH: Final = 64
LARGEST_BATCH: Final = 1024
BATCH_BYTES: Final = 1 << 18
"""A batch has not much more than so many bytes, however large the values are."""


class RangeOptions(TypedDict, total=False):
    """The options of `items`, `keys` and `values`, as in `cowdb.Tree`."""

    prefix: object
    reverse: bool
    include_start: bool
    include_stop: bool
    limit: int | None


class Source(Protocol):
    """What a view needs of its tree."""

    fetches_ahead: bool
    version: int

    @property
    def below(self) -> Tree | WriteTree:
        """The tree of the engine."""

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have a thread call `function`."""

    async def outcome(self, future: Future[_T]) -> _T:
        """Wait for what `submit` gave; a cancellation leaves it alone, or ends the transaction."""

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Both."""


class View(Generic[_T]):
    """A range of a tree: ``async for`` over it, as often as you like. It holds bounds, not entries."""

    def __init__(self, tree: Source, kind: str, start: object, stop: object, options: RangeOptions) -> None:
        """`kind` is "items", "keys" or "values"."""
        self.tree = tree
        self.kind = kind
        self.reverse = options.get("reverse", False)
        self._limit = options.get("limit")
        self._view = self._look(start, stop, options)  # says at once what is wrong with an argument
        self._start, self._stop, self._prefix = map(_frozen, (start, stop, options.get("prefix")))
        self._options = options

    def _look(self, start: object, stop: object, options: RangeOptions) -> Any:
        tree = self.tree.below
        return tree.keys(start, stop, **options) if self.kind == "keys" else tree.items(start, stop, **options)

    def entries(self) -> Iterator[Any]:
        """From the beginning: keys, or items (also for values, whose keys are needed to go on). In a thread."""
        return iter(self._view)

    def entries_after(self, key: bytes, given: int) -> Iterator[Any]:
        """The same behind `key`, the last of `given` entries. In a thread."""
        options: RangeOptions = {**self._options, "prefix": self._prefix}
        if self._limit is not None:
            options["limit"] = self._limit - given
        if self.reverse:
            return iter(self._look(self._start, key, {**options, "include_stop": False}))
        return iter(self._look(key, self._stop, {**options, "include_start": False}))

    async def count(self) -> int:
        """Number of entries in the range. O(log n)."""
        return await self.tree.call(len, self._view)

    def __aiter__(self) -> AsyncIterator[_T]:
        return _Entries(self, FIRST_BATCH)

    def batches(self, size: int = LARGEST_BATCH) -> AsyncIterator[list[_T]]:
        """Lists of at most `size` entries, fewer when they are large."""
        if size < 1:
            raise ValueError(f"a batch has at least 1 entry, not {size}")
        return _Batches(self, size)


def _frozen(key: Any) -> bytes | None:
    return None if key is None else bytes(memoryview(key))


class _Walk(Generic[_T]):
    """One way through a range: its entries a batch at a time, and in a snapshot one batch ahead."""

    def __init__(self, view: View[_T], size: int) -> None:
        self._view = view
        self._size = size
        self._source: Iterator[Any] | None = None
        self._pending: Future[list[Any]] | None = None
        self._exhausted = False
        self._busy = False
        self._version = 0
        self._given = 0

    def __aiter__(self) -> Self:
        return self

    def _fetch(self, size: int) -> list[Any]:
        """The next batch, of at most `size` entries. In a thread."""
        if self._source is None:
            self._source = self._view.entries()
        keys_only = self._view.kind == "keys"
        batch: list[Any] = []
        room = BATCH_BYTES
        for entry in self._source:
            batch.append(entry)
            room -= len(entry) if keys_only else len(entry[0]) + len(entry[1])
            if len(batch) >= size or room <= 0:
                break
        else:
            self._exhausted = True
        return batch

    def _ask(self) -> None:
        self._version = self._view.tree.version
        self._pending = self._view.tree.submit(self._fetch, self._size)

    async def _next(self) -> list[Any]:
        """The next batch, empty at the end.

        A cancellation loses nothing, and an error stays: the next call goes on from there, or raises it again.
        """
        if self._busy:
            raise RuntimeError("another task is waiting for the next entry of this iterator already")
        if self._pending is None:
            if self._exhausted:
                return []
            self._ask()
        assert self._pending is not None
        self._busy = True
        try:
            batch = await self._view.tree.outcome(self._pending)
        finally:
            self._busy = False
        self._pending = None
        self._grow()
        if not self._exhausted and self._view.tree.fetches_ahead:
            self._ask()
        return batch

    def _grow(self) -> None:
        """A batch has come; the next one may be of another size."""

    def _is_stale(self) -> bool:
        """True if the tree was changed after what was fetched last."""
        return self._view.tree.version != self._version

    def _restart(self, last: Any) -> None:
        """Forget what was fetched and not given; go on behind the entry `last`."""
        key = last if self._view.kind == "keys" else last[0]
        self._source = self._view.entries_after(key, self._given)
        self._exhausted = False

    def _project(self, entry: Any) -> _T:
        return cast("_T", entry[1] if self._view.kind == "values" else entry)


class _Batches(_Walk[_T], Generic[_T]):
    """Whole batches."""

    _last: Any = None

    async def __anext__(self) -> list[_T]:
        if self._given and self._is_stale():
            self._restart(self._last)
        batch = await self._next()
        if not batch:
            raise StopAsyncIteration
        self._given += len(batch)
        self._last = batch[-1]
        return [self._project(entry) for entry in batch]


class _Entries(_Walk[_T], Generic[_T]):
    """Single entries, out of batches that grow as long as nothing is changed meanwhile."""

    def __init__(self, view: View[_T], size: int) -> None:
        super().__init__(view, size)
        self._batch: list[Any] = []
        self._at = 0

    def _grow(self) -> None:
        self._size = min(2 * self._size, LARGEST_BATCH)

    async def __anext__(self) -> _T:
        stale = self._given and self._is_stale()
        if stale or self._at == len(self._batch):
            if stale:
                self._restart(self._batch[self._at - 1])
                self._size = 1
            batch = await self._next()
            if not batch:
                raise StopAsyncIteration
            self._batch = batch
            self._at = 0
        entry = self._batch[self._at]
        self._at += 1
        self._given += 1
        return self._project(entry)
