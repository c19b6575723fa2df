"""How a task waits for a thread, and for its turn to write.

Two ways to wait for what a thread does:

    what only reads      cancelled --> the task goes on at once; the thread finishes its call, nobody looks at it
    what writes          cancelled --> the thread is told, awaited to its end, then `CancelledError` comes out

The tasks of one handle queue here for the writer lock, first come, first served.  Only the first of them has a
thread, in which it waits for the writers of other handles.  A commit lets the next one come when it begins, not when it
ends, since the engine hands the lock on as soon as it can, and lets commits share a flush:

    task 4 --> task 3 --> task 2: a thread, in spells --> the writer lock of the file
                          task 1: committing

It waits there in short spells, since a thread cannot be called back from a lock: between two spells it looks whether
anybody still wants what it waits for.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from cowdb.errors import ClosedError, LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from types import TracebackType

    Progress = Callable[[int, int], object] | None

__all__ = ["SHORT_SPELL", "Block", "Queue", "Turn", "Use", "alone", "go_on", "settle", "waiter_of"]

_T = TypeVar("_T")

SHORT_SPELL: Final = 0.05
"""Seconds that a thread waits for a lock before it looks whether anybody still wants it ..."""
LONG_SPELL: Final = 1.0
"""... and at most, when it has waited for as long already: a longer spell keeps its place among others for longer."""

# ---------------------------------------------------------------- threads


def waiter_of(future: Future[_T]) -> asyncio.Future[_T]:
    """`future` for the running loop; its error is not missed by anybody if nobody awaits it any more."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiter


async def settle(future: Future[_T], give_up: Callable[[], object]) -> _T:
    """The outcome of `future`, awaited to its end: a cancellation calls `give_up`, and is raised afterwards."""
    waiter = waiter_of(future)
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait((waiter,))
        except asyncio.CancelledError as error:
            cancelled = error
            give_up()
    if cancelled is not None:
        raise cancelled
    return waiter.result()


def go_on() -> None:
    """What a cancellation does to work that must not be left half done: nothing."""


async def alone(work: Callable[[], _T], give_up: Callable[[], object] = go_on) -> _T:
    """What `work` returns, from a thread of its own that has ended by then."""
    with ThreadPoolExecutor(1, thread_name_prefix="cowdb-call") as thread:
        future = thread.submit(work)
        thread.shutdown(wait=False)  # it ends as soon as the work does, so that leaving the block waits for nothing
        return await settle(future, give_up)


# ---------------------------------------------------------------- turns


class Turn:
    """One task's wait for the writer lock, and its time with it."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.came: Future[None] = Future()
        self.gone: Future[None] = Future()
        self.over = False  # do not wait any longer
        self.stopped = False  # do not work any longer
        self.abort: Callable[[], Callable[[], object] | None] | None = None  # weak: ends an open transaction
        self._began = time.monotonic()
        self._deadline = None if timeout is None else self._began + timeout
        task = asyncio.current_task()
        assert task is not None
        self.task = weakref.ref(task)

    def left(self) -> float | None:
        """Seconds until the timeout; None if there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def give_up(self) -> None:
        """End the waiting and the work soon, unfinished."""
        self.over = self.stopped = True
        abort = self.abort and self.abort()
        if abort:
            abort()

    def attempt(self, locked: Callable[[float], _T]) -> _T:
        """What `locked(seconds)` returns, tried in spells until it gets its lock. In a thread."""
        while not self.over:
            spell = min(LONG_SPELL, max(SHORT_SPELL, time.monotonic() - self._began))
            left = self.left()
            try:
                return locked(spell if left is None else min(spell, left))
            except LockTimeoutError as error:
                if self.timeout is not None and not self.left():
                    raise LockTimeoutError(error.what, self.timeout, error.holder) from None
        raise ClosedError("the database was closed while this waited for the writer lock")

    def reporter(self, loop: asyncio.AbstractEventLoop, progress: Progress) -> Callable[[int, int], None]:
        """What a thread calls instead of `progress`, which is called in `loop`; it ends work that is to stop."""

        def report(done: int, total: int) -> None:
            if self.stopped:
                raise ClosedError("the database was closed")
            if progress is not None:
                loop.call_soon_threadsafe(progress, done, total)

        return report


class Queue:
    """The tasks of one handle that want to write; the first of them may. Any thread may call it, and a finalizer."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # a finalizer may leave while its thread is in here
        self._turns: deque[Turn] = deque()
        self._committing: set[Turn] = set()

    def turns(self) -> list[Turn]:
        """All of them, first come first."""
        return list(self._turns)

    def is_mine(self) -> bool:
        """True if it is the running task's turn already."""
        return any(turn.task() is asyncio.current_task() for turn in self.turns()[:1])

    def join(self, turn: Turn) -> None:
        """Queue up; `turn.came` tells when it has come."""
        with self._mutex:
            self._turns.append(turn)
            self._call_next()

    def pass_on(self, turn: Turn) -> None:
        """Let the next one come: this one only commits."""
        with self._mutex:
            self._committing.add(turn)
            self._turns.remove(turn)
            self._call_next()

    def leave(self, turn: Turn) -> None:
        """Let the next one come. Harmless when repeated."""
        with self._mutex:
            self._committing.discard(turn)
            if turn in self._turns:
                self._turns.remove(turn)
            self._call_next()
            if not turn.gone.done():
                turn.gone.set_result(None)

    def commits(self) -> list[Future[None]]:
        """What tells that those have left who are committing now."""
        with self._mutex:
            return [turn.gone for turn in self._committing]

    def _call_next(self) -> None:
        if self._turns and not self._turns[0].came.done():
            self._turns[0].came.set_result(None)


# ---------------------------------------------------------------- lifetimes


class Use:
    """Who looks into a snapshot: it ends after the last call that does, since its pages are used again then (I2)."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.ended: Future[None] = Future()
        self._mutex = threading.Lock()
        self._end = end
        self._users = 1  # the transaction itself
        self._ending = False

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What `function` returns. In a thread."""
        with self._mutex:
            if self._ending:
                raise ClosedError("this transaction has ended; begin another one with read()")
            self._users += 1
        try:
            return function(*arguments)
        finally:
            self._leave()

    def end(self) -> None:
        """Let no more calls in; `ended` tells when the last one is out. Harmless when repeated."""
        with self._mutex:
            again, self._ending = self._ending, True
        if not again:
            self._leave()

    def _leave(self) -> None:
        with self._mutex:
            self._users -= 1
            last = not self._users
        if last:
            self._end()
            self.ended.set_result(None)


class _Closing(Protocol):
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


_C = TypeVar("_C", bound=_Closing)


class Block(Generic[_C]):
    """What `open`, `read` and `write` give: ``await`` it, or use it once as an ``async with`` block."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, _C]]) -> None:
        self._begin: Callable[[], Coroutine[Any, Any, _C]] | None = begin
        self._begun: _C | None = None

    def __await__(self) -> Generator[Any, Any, _C]:
        begin, self._begin = self._begin, None
        if begin is None:
            raise RuntimeError("this was begun already; call open(), read() or write() for each use")
        return begin().__await__()

    async def __aenter__(self) -> _C:
        self._begun = await self
        return self._begun

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._begun is not None
        await self._begun.__aexit__(kind, error, trace)
