"""Trees and transactions for asyncio: the words of `cowdb.Tree` and `cowdb.WriteTree`, awaited.

A method here finds the thread, and the engine's method does the rest:

    await snap.get(b"k") --> Tree.get --> call --> submit --> a thread of the pool: cowdb.Tree.get

Trees leave `submit` and `outcome` to their transaction.  That of a snapshot uses the handle's pool; a write
transaction has one thread of its own, since the engine ties the writer lock to the thread that took it, and that
thread sees every call in the order in which it was made.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from cowdb.aio.views import Item, View
from cowdb.aio.waiting import Use, go_on, settle, waiter_of
from cowdb.errors import ClosedError, ForkedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Unpack

    import cowdb.transaction as engine
    from cowdb import views
    from cowdb.aio.views import RangeOptions
    from cowdb.aio.waiting import Queue, Turn

__all__ = ["Transaction", "Tree", "WriteTransaction", "WriteTree", "refuse_fork"]

_T = TypeVar("_T")
_MISSING: Final = object()


def refuse_fork(process: int) -> None:
    """Raise `ForkedError` unless this is `process`: a child has none of its parent's threads and transactions."""
    if process != os.getpid():
        raise ForkedError("this transaction was begun before a fork, by the parent process")


class _Readable(abc.ABC):
    """What every tree can be asked."""

    below: views.Tree | views.WriteTree
    fetches_ahead: bool
    version = 0
    """Counts changes, so that an iterator knows when what it fetched is stale."""

    __iter__ = None  # it would block; use ``async for``

    @abc.abstractmethod
    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have the right thread call `function`, which uses the engine."""

    @abc.abstractmethod
    async def outcome(self, future: Future[_T]) -> _T:
        """Wait for what `submit` gave."""

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What `function` returns, called by the right thread."""
        future = self.submit(function, *arguments)
        try:
            return await self.outcome(future)
        except asyncio.CancelledError:
            future.cancel()  # if no thread has begun with it
            raise

    @overload
    async def get(self, key: object) -> bytes | None: ...
    @overload
    async def get(self, key: object, default: _T) -> bytes | _T: ...
    async def get(self, key: object, default: object = None) -> object:
        """The value of `key`, or `default`. O(log n)."""
        return await self.call(self.below.get, key, default)

    @overload
    def __getitem__(self, key: slice, /) -> View[Item]: ...
    @overload
    def __getitem__(self, key: Any, /) -> Coroutine[Any, Any, bytes]: ...
    def __getitem__(self, key: Any, /) -> Coroutine[Any, Any, bytes] | View[Item]:
        """``await tree[key]``: a value, or `KeyNotFoundError`; ``tree[b"a":b"m"]``: a view of items. O(log n)."""
        if isinstance(key, slice):
            if key.step is not None:
                raise ValueError("a slice of a tree has no step")
            return self.items(key.start, key.stop)
        return self.call(self.below.__getitem__, key)

    async def contains(self, key: object) -> bool:
        """True if there is such a key. O(log n)."""
        return await self.call(self.below.__contains__, key)

    async def first(self) -> Item | None:
        """The item with the least key, or None. O(log n)."""
        return await self.call(self.below.first)

    async def last(self) -> Item | None:
        """The item with the greatest key, or None. O(log n)."""
        return await self.call(self.below.last)

    async def floor(self, key: object) -> Item | None:
        """The item with the greatest key that is <= `key`, or None. O(log n)."""
        return await self.call(self.below.floor, key)

    async def ceiling(self, key: object) -> Item | None:
        """The item with the least key that is >= `key`, or None. O(log n)."""
        return await self.call(self.below.ceiling, key)

    async def peekitem(self, index: int = -1) -> Item:
        """The item at `index` in key order, negative from the end; `IndexError` outside. O(log n)."""
        return await self.call(self.below.peekitem, index)

    async def bisect_left(self, key: object) -> int:
        """The number of entries whose key is less than `key`. O(log n)."""
        return await self.call(self.below.bisect_left, key)

    async def bisect_right(self, key: object) -> int:
        """The number of entries whose key is not greater than `key`. O(log n)."""
        return await self.call(self.below.bisect_right, key)

    bisect = bisect_right

    async def count(self, start: object = None, stop: object = None, *, prefix: object = None) -> int:
        """The number of entries with start <= key < stop, or with `prefix`; of all, without either. O(log n)."""
        return await self.call(functools.partial(self.below.count, start, stop, prefix=prefix))

    async def get_view(self, key: object) -> memoryview | None:
        """The value of `key` as a memoryview, as in `cowdb.Tree.get_view`.

        To look at a large one reads the file in the thread that looks.
        """
        return await self.call(self.below.get_view, key)

    def items(self, start: object = None, stop: object = None, **options: Unpack[RangeOptions]) -> View[Item]:
        """A view of the items from `start` to `stop`, or with `prefix`, for ``async for``. O(1)."""
        return View(self, "items", start, stop, options)

    def keys(self, start: object = None, stop: object = None, **options: Unpack[RangeOptions]) -> View[bytes]:
        """A view of the keys of a range. O(1)."""
        return View(self, "keys", start, stop, options)

    def values(self, start: object = None, stop: object = None, **options: Unpack[RangeOptions]) -> View[bytes]:
        """A view of the values of a range of keys, in key order. O(1)."""
        return View(self, "values", start, stop, options)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The keys in order."""
        return self.keys().__aiter__()

    def __repr__(self) -> str:
        return f"<asyncio form of {object.__repr__(self.below)}>"


# ---------------------------------------------------------------- reading


class Tree(_Readable):
    """A named tree of a snapshot. Tasks may use it side by side."""

    below: views.Tree
    fetches_ahead = True

    def __init__(self, below: views.Tree, transaction: Transaction) -> None:
        self.below = below
        self._transaction = transaction

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have a thread of the pool call `function`, unless the snapshot has ended by then."""
        return self._transaction.submit(function, *arguments)

    async def outcome(self, future: Future[_T]) -> _T:
        """Wait for what `submit` gave; a cancellation leaves it alone."""
        waiter = waiter_of(future)
        await asyncio.wait((waiter,))
        return waiter.result()


class Transaction(Tree):
    """A snapshot: the main tree, and the named trees. It never changes.

    Tasks may use it side by side.  At its end it waits for the calls that look into it.
    """

    below: engine.Transaction

    def __init__(self, below: engine.Transaction, submit: Callable[..., Future[Any]]) -> None:
        """`submit` has a thread of the handle's pool call something."""
        self.below = below
        self._process = os.getpid()
        self._submit = submit
        self._use = Use(below.close)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have a thread of the pool call `function`, unless the snapshot has ended by then."""
        refuse_fork(self._process)
        return self._submit(self._use.call, function, *arguments)

    @property
    def id(self) -> int:
        """The id of the transaction that wrote this state."""
        return self.below.id

    @property
    def closed(self) -> bool:
        """True once the transaction has ended."""
        return self.below.closed

    async def tree(self, name: str, *, create: bool = False) -> Tree:
        """The tree called `name`; `KeyNotFoundError` if there is none. O(log trees)."""
        return Tree(await self.call(functools.partial(self.below.tree, name, create=create)), self)

    async def trees(self) -> list[str]:
        """The names of the named trees, in the order of their UTF-8. O(trees)."""
        return await self.call(self.below.trees)

    async def close(self) -> None:
        """End the transaction, after the calls that are running. Harmless when repeated."""
        self._use.end()
        if not self._use.ended.done():
            await asyncio.wait((waiter_of(self._use.ended),))

    abort = close

    async def __aenter__(self) -> Self:
        """Use it as a block; it ends with it."""
        if self.closed:
            raise ClosedError("this transaction has ended; begin another one with read()")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


# ---------------------------------------------------------------- writing


class WriteTree(_Readable):
    """A named tree in a write transaction. Calls take effect in the order in which they are made."""

    below: views.WriteTree
    fetches_ahead = False

    def __init__(self, below: views.WriteTree, transaction: WriteTransaction) -> None:
        self.below = below
        self._transaction = transaction

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have the transaction's thread call `function`."""
        return self._transaction.submit(function, *arguments)

    async def outcome(self, future: Future[_T]) -> _T:
        """Wait for what `submit` gave; a cancellation aborts the transaction."""
        return await self._transaction.outcome(future)

    async def _change(self, function: Callable[..., _T], *arguments: Any) -> _T:
        self.version += 1
        return await self.call(function, *arguments)

    async def put(self, key: object, value: object, *, overwrite: bool = True, append: bool = False) -> bool:
        """Store `value` under `key`; False, and nothing changed, if it is there and `overwrite` is false.

        With `append`, `key` must be greater than every key of the tree
        (`ValueError`).  Raises `KeySizeError`, `TypeError`, `FullError`.  O(log n).
        """
        return await self._change(functools.partial(self.below.put, key, value, overwrite=overwrite, append=append))

    async def delete(self, key: object) -> bool:
        """Remove `key`; False if it is not there. O(log n)."""
        return await self._change(self.below.delete, key)

    @overload
    async def pop(self, key: object, /) -> bytes: ...
    @overload
    async def pop(self, key: object, /, default: bytes | _T) -> bytes | _T: ...
    async def pop(self, key: object, /, default: object = _MISSING) -> object:
        """Remove `key` and give its value, or `default` if it is not there. O(log n)."""
        if default is _MISSING:
            return await self._change(self.below.pop, key)
        return await self._change(self.below.pop, key, default)

    async def popitem(self, index: int = -1) -> Item:
        """Remove the item at `index` in key order and give it; `KeyNotFoundError` if the tree is empty. O(log n)."""
        return await self._change(self.below.popitem, index)

    async def setdefault(self, key: object, default: object = b"", /) -> bytes:
        """The value of `key`; stores `default` first if it is not there. O(log n)."""
        return await self._change(self.below.setdefault, key, default)

    async def update(self, pairs: Any = (), /) -> None:
        """Put every pair of a mapping or of an iterable of pairs, which the thread goes through. O(log n) each."""
        await self._change(self.below.update, pairs)

    async def clear(self) -> None:
        """Remove every entry. O(pages)."""
        await self._change(self.below.clear)

    async def delete_range(self, start: object = None, stop: object = None, *, prefix: object = None) -> int:
        """Remove the entries with start <= key < stop (None: no bound), or with `prefix`; how many there were."""
        return await self._change(functools.partial(self.below.delete_range, start, stop, prefix=prefix))


class WriteTransaction(WriteTree):
    """The next state, while it is being made: the main tree, and the named trees.

    A call that is cancelled aborts it: `CancelledError` comes out when that is
    done.  So does the end of the block when it raises; else it commits.
    """

    below: engine.WriteTransaction

    def __init__(self, turn: Turn, queue: Queue) -> None:
        """`turn` has come; it is given back to `queue` at the end."""
        self._last: Future[None] | None = None
        self._queue = queue
        self._turn = turn
        self._lost: str | None = None
        self._begun = False
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cowdb-write")
        self._trees: weakref.WeakValueDictionary[views.WriteTree, WriteTree] = weakref.WeakValueDictionary()
        turn.abort = weakref.WeakMethod(self.lose)

    def __del__(self) -> None:
        # Forgotten: the engine's transaction warns and aborts as it goes, and the thread ends with its executor.
        if self._last is None:
            self._queue.leave(self._turn)

    # ------------------------------------------------------------ the thread

    async def begin(self, write: Callable[[float], engine.WriteTransaction]) -> Self:
        """Take the writer lock, by `write(seconds)`, in the thread; on a failure nothing is left of this."""

        def begin() -> None:
            self.below = self._turn.attempt(write)
            self._begun = True
            if self._turn.stopped:  # nobody wants it any more, and whoever said so may have been too early for `lose`
                self.below.abort()
                raise ClosedError("the database was closed")

        try:
            await settle(self._thread.submit(begin), self._turn.give_up)
        except BaseException:
            if self._begun:
                await self.abort()
            else:
                self._thread.shutdown()
                self._queue.leave(self._turn)
            raise
        return self

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have the transaction's thread call `function`."""
        refuse_fork(self._process)
        with self._mutex:
            if self._last is not None:
                raise ClosedError(self._lost or "this transaction has ended; begin another one with write()")
            return self._thread.submit(function, *arguments)

    async def outcome(self, future: Future[_T]) -> _T:
        """Wait for what `submit` gave; a cancellation aborts the transaction."""
        try:
            return await settle(future, go_on)
        except asyncio.CancelledError:
            self.lose("this transaction was aborted, because one of its calls was cancelled")
            await self.abort()
            raise

    def _end(self, function: Callable[[], None], *, commits: bool = False) -> bool:
        """Have the thread call `function` as its last; False if it has a last one. The next writer comes after it.

        If it `commits`, he may come at once: the engine knows when.
        """
        refuse_fork(self._process)
        with self._mutex:
            if self._last is not None:
                return False
            queue, turn = self._queue, self._turn
            self._last = self._thread.submit(function)
            if commits:
                queue.pass_on(turn)
            self._last.add_done_callback(lambda _: queue.leave(turn))
            self._thread.shutdown(wait=False)
            return True

    async def _ended(self) -> None:
        """Wait until the last call is done and the thread has ended."""
        assert self._last is not None
        try:
            await settle(self._last, go_on)
        finally:
            self._thread.shutdown()  # the thread has nothing left to do, so this waits for nothing but its end

    def lose(self, reason: str = "this transaction was aborted, because the database was closed") -> None:
        """Abort soon, for a reason that its user does not know."""
        if self._begun and self._end(self.below.abort):
            self._lost = reason

    # ------------------------------------------------------------ named trees

    @property
    def id(self) -> int:
        """The transaction id that this state will have."""
        return self.below.id

    @property
    def closed(self) -> bool:
        """True once the transaction was committed or aborted, or is about to be."""
        return self._last is not None

    async def tree(self, name: str, *, create: bool = False) -> WriteTree:
        """The tree called `name`; made if there is none and `create` is true, else `KeyNotFoundError`. O(log trees)."""
        below = await self.call(functools.partial(self.below.tree, name, create=create))
        # One object a tree, so that whoever iterates over it knows of all its changes.
        return self._trees.get(below) or self._trees.setdefault(below, WriteTree(below, self))

    async def trees(self) -> list[str]:
        """The names of the named trees, in the order of their UTF-8. O(trees)."""
        return await self.call(self.below.trees)

    async def drop(self, name: str) -> None:
        """Remove the tree called `name` with all its entries; `KeyNotFoundError` if there is none. O(its pages)."""
        for tree in list(self._trees.values()):
            tree.version += 1
        await self.call(self.below.drop, name)

    async def rename(self, old: str, new: str) -> None:
        """Give the tree called `old` the name `new`, which must be free (`ValueError`). O(log trees)."""
        await self.call(self.below.rename, old, new)

    # ------------------------------------------------------------ ending

    async def commit(self) -> None:
        """Make this the state of the database. It has ended then, also if this raises.

        Under ``durability="full"`` a return means that it survives a power cut.
        A cancellation does not stop it: `CancelledError` comes out when it is
        done, and it may have been committed.  Raises as `cowdb.WriteTransaction.commit`.
        """
        if not self._end(self.below.commit, commits=True):
            raise ClosedError(self._lost or "this transaction has ended already")
        await self._ended()

    async def abort(self) -> None:
        """Forget all changes. When it has ended already, wait until that is done."""
        mine = self._end(self.below.abort)
        try:
            await self._ended()
        except Exception:
            if mine:
                raise

    close = abort

    async def __aenter__(self) -> Self:
        """Use it as a block: it commits at the end, and aborts if the block raises."""
        if self.closed:
            raise ClosedError("this transaction has ended; begin another one with write()")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self.closed:
            await self.commit()
            return
        await self.abort()
        if kind is None and self._lost is not None:
            raise ClosedError(self._lost)
