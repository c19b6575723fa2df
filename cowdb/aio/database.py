"""The handle for asyncio: opening, beginning transactions, and what is asked of the whole file.

A `Database` owns a handle of the engine, a pool of threads that read, and the queue of its tasks that want to write:

                 +-- a pool of threads     reads, iteration, copy, stats
    Database ----+-- a queue of tasks      its first one writes, in a thread of its own
                 +-- cowdb.Database        made with a short lock timeout, so that no thread is lost in a lock

It belongs to no event loop: any loop may use it, also several at once, each in its thread.  A child after a fork
makes a pool and a queue of its own, and the engine's handle opens the file again.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, overload

from cowdb import database as engine
from cowdb.aio.trees import Transaction, WriteTransaction
from cowdb.aio.waiting import SHORT_SPELL, Block, Queue, Turn, alone, settle
from cowdb.errors import ClosedError, Error, LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Unpack

    from cowdb.aio.waiting import Progress
    from cowdb.findings import Finding
    from cowdb.stats import Stats
    from cowdb.storage import Disk
    from cowdb.transaction import WriteTransaction as Draft

__all__ = ["Database", "OpenOptions", "open", "open_on"]

_T = TypeVar("_T")


class OpenOptions(TypedDict, total=False):
    """The options of `cowdb.open`, which explains them."""

    read_only: bool
    create: bool
    page_size: int
    durability: str
    max_size: int | None
    mode: int
    lock_timeout: float | None
    verify: bool


class Database:
    """A handle of one open file; made by `cowdb.aio.open`, safe to use from any task and any event loop."""

    def __init__(self, below: engine.Database, threads: int, lock_timeout: float | None) -> None:
        self._below = below
        self._threads = threads
        self._lock_timeout = lock_timeout
        self._closing = False  # no new work
        self._ended = False  # no calls
        self._start()

    def _start(self) -> None:
        """Have threads, and nobody in them. Again in a child after a fork, to which none of them came along."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="cowdb-read")
        self._queue = Queue()
        self._mutex = threading.Lock()
        self._process = os.getpid()

    # ------------------------------------------------------------ what it is

    @property
    def path(self) -> str:
        """The path that it was opened with, made absolute."""
        return self._below.path

    @property
    def max_key_size(self) -> int:
        """The longest key in bytes that this file takes."""
        return self._below.max_key_size

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._below.closed

    # ------------------------------------------------------------ threads

    def _refuse_closed(self) -> None:
        if self._process != os.getpid():
            self._start()
        if self._closing:
            raise ClosedError(f"the database {self.path!r} is closed")

    def _submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have a thread of the pool call `function`, also while the database waits to be closed."""
        with self._mutex:
            if self._ended:
                raise ClosedError(f"the database {self.path!r} is closed")
            return self._pool.submit(function, *arguments)

    async def _look(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What `function` returns, called by a thread of the pool; a cancellation lets go of it."""
        self._refuse_closed()
        return await asyncio.wrap_future(self._submit(function, *arguments))

    async def _take_turn(self, timeout: float | None) -> Turn:  # noqa: ASYNC109 - the engine's own timeout
        """Wait for the tasks of this handle that came before."""
        self._refuse_closed()
        if self._queue.is_mine():
            raise Error("this task has a write transaction open already; commit or abort it first")
        turn = Turn(self._lock_timeout if timeout is None else timeout)
        self._queue.join(turn)
        try:
            if not turn.came.done():
                await asyncio.wait((asyncio.wrap_future(turn.came),), timeout=turn.left())
            if not turn.came.done():
                raise LockTimeoutError("the writer lock", turn.timeout or 0.0, os.getpid())
            self._refuse_closed()
        except BaseException:
            self._queue.leave(turn)
            raise
        return turn

    async def _in_turn(self, work: Callable[[Turn], _T]) -> _T:
        """What `work` returns, which needs the writer lock, in a thread of its own."""
        turn = await self._take_turn(None)
        try:
            return await alone(functools.partial(work, turn), turn.give_up)
        finally:
            self._queue.leave(turn)

    # ------------------------------------------------------------ transactions

    def read(self) -> Block[Transaction]:
        """A snapshot of the newest state: ``async with db.read() as snap``. It waits for nothing. O(1)."""
        return Block(self._read)

    async def _read(self) -> Transaction:
        if self._process != os.getpid():
            await self.count()  # the engine opens the file again: not in the loop
        self._refuse_closed()
        return Transaction(self._below.read(), self._submit)

    def write(self, *, timeout: float | None = None, durability: str | None = None) -> Block[WriteTransaction]:
        """Begin the one write transaction that there can be; waits for the one before.

        ``async with db.write() as txn`` commits at the end of the block, and aborts
        if it raises or is cancelled.  `timeout` in seconds (default: the
        `lock_timeout` of `open`), then `LockTimeoutError`.  `durability` for this
        transaction alone.  Raises `ReadOnlyError`, `PoisonedError`, and `Error` at
        once if this task has a write transaction open.
        """
        return Block(functools.partial(self._write, timeout, durability))

    async def _write(
        self,
        timeout: float | None,  # noqa: ASYNC109 - the engine's own timeout
        durability: str | None,
    ) -> WriteTransaction:
        turn = await self._take_turn(timeout)
        transaction = WriteTransaction(turn, self._queue)
        return await transaction.begin(lambda seconds: self._below.write(timeout=seconds, durability=durability))

    # ------------------------------------------------------------ one call, one transaction

    @overload
    async def get(self, key: object) -> bytes | None: ...
    @overload
    async def get(self, key: object, default: _T) -> bytes | _T: ...
    async def get(self, key: object, default: object = None) -> object:
        """The value of `key` in the main tree's newest state, or `default`."""
        return await self._look(self._below.get, key, default)

    def __getitem__(self, key: object) -> Coroutine[Any, Any, bytes]:
        """``await db[key]``: its value in the main tree's newest state; `KeyNotFoundError` if there is none."""
        return self._look(self._below.__getitem__, key)

    __iter__ = None  # not a sequence: iterate over a transaction

    async def contains(self, key: object) -> bool:
        """True if the main tree's newest state has `key`."""
        return await self._look(self._below.__contains__, key)

    async def count(self) -> int:
        """Number of entries of the main tree's newest state."""
        return await self._look(self._below.__len__)

    async def put(self, key: object, value: object, *, overwrite: bool = True) -> bool:
        """Store one entry in the main tree, in a transaction of its own; see `WriteTree.put`.

        Cancelled before its commit it stores nothing; later it is committed, and
        then `CancelledError` comes out.
        """
        return await self._change(lambda draft: draft.put(key, value, overwrite=overwrite))

    async def delete(self, key: object) -> bool:
        """Remove one entry from the main tree, in a transaction of its own; False if it is not there."""
        return await self._change(lambda draft: draft.delete(key))

    async def _change(self, change: Callable[[Draft], _T]) -> _T:
        def work(turn: Turn) -> _T:
            with turn.attempt(lambda seconds: self._below.write(timeout=seconds)) as draft:
                result = change(draft)
                if turn.stopped:
                    draft.abort()
                    raise ClosedError("the database was closed")
                self._queue.pass_on(turn)
            return result

        return await self._in_turn(work)

    # ------------------------------------------------------------ about the whole file

    async def sync(self) -> None:
        """Make every transaction so far durable. One flush, or none if they are."""
        await self._in_turn(lambda turn: turn.attempt(lambda _: self._below.sync()))

    async def stats(self) -> Stats:
        """What copy-on-write costs and saves, counted since this process opened the file. O(named trees)."""
        return await self._look(self._below.stats)

    async def info(self) -> dict[str, Any]:
        """The facts of the file: format, sizes, transactions, trees. O(named trees)."""
        return await self._look(self._below.info)

    async def readers(self) -> list[dict[str, Any]]:
        """The snapshots that are in use, oldest first: process, transaction, users, age in transactions."""
        return await self._look(self._below.readers)

    async def check(self, progress: Progress = None) -> list[Finding]:
        """Walk over the whole file and report every violation of I3 to I7; see `cowdb.Database.check`. O(file).

        Writers wait meanwhile, readers do not.  `progress` is called in the event
        loop.  A cancellation ends the walk at its next report of progress.
        """
        loop = asyncio.get_running_loop()
        return await self._in_turn(
            lambda turn: turn.attempt(lambda _: self._below.check(turn.reporter(loop, progress)))
        )

    async def copy(
        self,
        path: str | os.PathLike[str],
        *,
        compact: bool = False,
        page_size: int | None = None,
        progress: Progress = None,
    ) -> None:
        """Write the newest state to a new file at `path`, while others read and write; see `cowdb.Database.copy`.

        `progress` is called in the event loop.  A cancellation ends the copy at its
        next report of progress, and nothing is left of it.
        """
        self._refuse_closed()
        turn = Turn(None)
        report = turn.reporter(asyncio.get_running_loop(), progress)
        future = self._submit(
            functools.partial(self._below.copy, path, compact=compact, page_size=page_size, progress=report)
        )

        def give_up() -> None:
            turn.give_up()
            future.cancel()  # if no thread has begun with it

        await settle(future, give_up)

    # ------------------------------------------------------------ ending

    async def close(self) -> None:
        """Let the file go. Nothing new begins from now on. Harmless when repeated.

        Write transactions that other tasks have open may go on, and are waited for;
        that of this very task is aborted.  Then the calls that are running are
        waited for, and snapshots end.  A cancellation ends the waiting for other
        tasks: their write transaction is aborted, the database is closed, and
        `CancelledError` comes out.
        """
        if self._process != os.getpid():
            self._start()
        self._closing = True
        for turn in self._queue.turns():
            if turn.task() is asyncio.current_task():
                turn.give_up()
            turn.over = True
        mine = Turn(None)
        self._queue.join(mine)
        try:
            try:
                await settle(mine.came, self._give_up)
            finally:
                await alone(self._finish)
        finally:
            self._queue.leave(mine)

    def _give_up(self) -> None:
        for turn in self._queue.turns():
            turn.give_up()

    def _finish(self) -> None:
        """Wait for the commits and calls that are running, and let the file go. In a thread."""
        wait(self._queue.commits())
        with self._mutex:
            self._ended = True
        self._pool.shutdown()
        self._below.close()

    async def __aenter__(self) -> Self:
        """Use it as a block; it closes at the end."""
        self._refuse_closed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<asyncio form of {self._below!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Raise `TypeError`: an event loop's database does not travel; pickle the path."""
        raise TypeError("a database of cowdb.aio cannot be pickled; pickle its path and open it there")


# ---------------------------------------------------------------- opening


def open(  # noqa: A001 - the natural name, used as cowdb.aio.open
    path: str | os.PathLike[str], *, threads: int = 4, **options: Unpack[OpenOptions]
) -> Block[Database]:
    """Open the database in the file `path`: ``await`` it, or use it as an ``async with`` block.

    `threads` is how many reads can wait for the disk at once; the options and the
    errors are those of `cowdb.open`.  O(what the last commit wrote).
    """
    return Block(functools.partial(_open, functools.partial(engine.open, path), threads, options))


def open_on(disk: Disk, path: str | os.PathLike[str], *, threads: int = 4, **options: Any) -> Block[Database]:
    """`open` on a disk of one's own, such as the fakes of `cowdb.testing`; the options of `cowdb.database.open_on`."""
    return Block(functools.partial(_open, functools.partial(engine.open_on, disk, path), threads, options))


async def _open(opener: Callable[..., engine.Database], threads: int, options: Any) -> Database:
    if threads < 1:
        raise ValueError(f"reading takes at least 1 thread, not {threads}")
    lock_timeout = options.get("lock_timeout")
    turn = Turn(lock_timeout or 0.0)
    opened: list[engine.Database] = []

    def work() -> None:
        # The engine's own timeout is a spell: `sync` and `check` wait with it, and can be called back.
        opened.append(turn.attempt(lambda _: opener(**{**options, "lock_timeout": SHORT_SPELL})))

    try:
        await alone(work, turn.give_up)
    except BaseException:
        for below in opened:  # cancelled in the moment in which it was open
            await alone(below.close)
        raise
    return Database(opened[0], threads, lock_timeout)
