"""Writes of one call, by many threads at once: one thread makes them all, in one transaction.

To put an entry takes microseconds, the pages and the flush of a transaction a
hundred times that.  So while one such call is on its way, others do not each
wait for a turn: they leave in a queue what they want done.  Whoever leads next
does it for all of them, and each gets his own result, or his own error, when
the transaction is committed.  To each it is a transaction of his own: nobody
reads a state in between, and none returns before it is durable (I9).

    thread 1   leads    begin   put a   put b   put c   commit ---.
    thread 2   leaves "put b" --------'        |                  |-> each returns
    thread 3   leaves "put c" -----------------'                  |
    thread 4   comes during the commit, waits, leads next --------'

Threads that were served together come back together, so the next leader waits
for as many as there were, but no longer than their transaction took.

The scheme is that of flat combining (Hendler, Incze, Shavit and Tzafrir, 2010).
A leader may be interrupted at any line.  So a thread that sleeps wakes by
itself now and then; and once it has the lead, nobody else is at its call: then
the transaction says whether it was committed, and if not, the thread does it itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from cowdb.errors import LockTimeoutError, PoisonedError
from cowdb.locks import entered, refuse_inside, tries

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb.transaction import WriteTransaction

__all__ = ["Combiner"]

_LOOK_AGAIN: Final = 0.05
"""Seconds that a thread sleeps at most before it looks by itself whether its call is done, or nobody leads."""


class Database(Protocol):
    """What transactions are begun on."""

    lock_timeout: float | None

    def write(self, *, timeout: float | None = None) -> WriteTransaction:
        """Begin a write transaction."""

    def has_turn(self) -> bool:
        """Whether the calling thread is the one who may write."""

    def sync(self) -> None:
        """Make every transaction so far durable."""


class _Call:
    """What one thread wants done, and what came of it."""

    __slots__ = ("arguments", "change", "error", "over", "result", "transaction", "wake")

    def __init__(self, change: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.change = change
        self.arguments = arguments
        self.result: Any = None
        self.error: Exception | None = None
        self.transaction: WriteTransaction | None = None  # in which it was done last
        self.over = False
        self.wake: threading.Lock | None = None  # for which its thread sleeps

    def make(self, transaction: WriteTransaction) -> None:
        """Do it. Its error is its thread's alone, unless the change broke off in the middle."""
        self.transaction = transaction
        self.error = None
        try:
            self.result = self.change(transaction, *self.arguments)
        except Exception as error:
            if transaction.changes.torn:
                raise
            self.error = error


class Combiner:
    """The calls of one database that write, of all threads of this process."""

    def __init__(self) -> None:
        self._lead = threading.Lock()
        self._tries = tries(self._lead)
        self._waiting: deque[_Call] = deque()
        self._last = 1  # calls that were done together last,
        self._ended = 0.0  # when that was, on the performance counter,
        self._seconds = 0.0  # and how long it took
        self._full: threading.Lock | None = None  # for which the leader waits until as many are there again

    def write(self, database: Database, change: Callable[..., Any], *arguments: object) -> Any:
        """What ``change(transaction, *arguments)`` returns, when its transaction is committed; raises what it raised.

        Another thread may call it, several times if a transaction fails. Raises also what beginning and committing do.
        """
        call = _Call(change, arguments)
        if self._lead.locked() or not self._make_if_free(database, call):
            self._wait(database, call)
        error, call.error = call.error, None  # which has the frames that have the call
        if error is None:
            return call.result
        try:
            raise error
        finally:
            del error

    # ------------------------------------------------------------ leading

    def _make_if_free(self, database: Database, call: _Call, timeout: float | None = None) -> bool:
        """Do the call, and others with it, if nobody leads; false if somebody does."""
        mine = False
        try:
            for mine in self._tries:  # noqa: B007 - it is looked at behind it
                break
            if mine and not call.over:
                self._make(database, call, database.lock_timeout if timeout is None else timeout)
        finally:
            if mine:
                self._lead.release()
                self._call_next()
        return mine

    def _make(self, database: Database, own: _Call, timeout: float | None) -> None:
        """Do the call, and all that wait, in one transaction; `own` is over, or this raises what befell it."""
        if own.wake is not None:
            self._withdraw(own)
            if own.transaction is not None and self._was_committed(database, own.transaction):
                own.over = True  # and who led was interrupted before he could say so
                return
        if self._last > 1:
            self._gather()
        others: list[_Call] = []
        try:
            self._make_together(database, own, others, timeout)
        except PoisonedError:
            raise
        except Exception:
            if not others:
                raise
            with database.write(timeout=timeout) as transaction:  # perhaps it was another one's fault
                own.make(transaction)
        own.over = True

    def _make_together(self, database: Database, own: _Call, others: list[_Call], timeout: float | None) -> None:
        """One transaction; `others` gets the calls that it made besides, and their threads go on."""
        begun = time.perf_counter()
        transaction = error = None
        done = False
        try:
            with database.write(timeout=timeout) as transaction:
                own.make(transaction)
                if self._waiting:
                    self._make_others(others, transaction)
            done = True
        except PoisonedError as found:
            error = found
            raise
        finally:
            self._last = 1 + len(others)
            if others:
                self._ended = time.perf_counter()
                self._seconds = self._ended - begun
                done = done or (transaction is not None and transaction.committed)
                for call in others:
                    if error is not None:
                        call.error = PoisonedError(*error.args)
                    if done or error is not None:
                        call.over = True
                    _release(call.wake)  # if it is not over, its thread does it

    def _was_committed(self, database: Database, transaction: WriteTransaction) -> bool:
        """Whether it was, though its thread failed or was interrupted. Certain, for what is sealed is flushed first."""
        if not transaction.committed:
            database.sync()
        return transaction.committed

    def _make_others(self, others: list[_Call], transaction: WriteTransaction) -> None:
        """Do what waits, first come, first served; `others` gets those calls."""
        waiting = self._waiting
        while waiting:
            try:
                call = waiting.popleft()
            except IndexError:
                return  # it was withdrawn in this very moment
            others.append(call)
            call.make(transaction)

    def _gather(self) -> None:
        """Wait for as many calls as were done together last, if that was just now, but no longer than they took."""
        missing = self._last - 1 - len(self._waiting)
        if missing <= 0 or time.perf_counter() - self._ended > self._seconds:
            return
        full = threading.Lock()
        full.acquire()
        try:
            self._full = full
            if len(self._waiting) + 1 < self._last:
                full.acquire(timeout=self._seconds)
        finally:
            self._full = None

    def _call_next(self) -> None:
        """Wake the one who has waited longest: he leads next."""
        try:  # noqa: SIM105 - `suppress` needs memory
            _release(self._waiting[0].wake)
        except IndexError:
            pass  # nobody waits

    # ------------------------------------------------------------ waiting

    def _wait(self, database: Database, call: _Call) -> None:
        """Have somebody do the call, or do it when nobody leads any more."""
        timeout = database.lock_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        left = None
        wake = call.wake = threading.Lock()
        wake.acquire()
        try:
            self._waiting.append(call)
            if self._full is not None and len(self._waiting) + 1 >= self._last:
                _release(self._full)
            while self._lead.locked() or not self._make_if_free(database, call, left):
                if deadline is not None:
                    left = max(0.0, deadline - time.monotonic())
                woken = wake.acquire(timeout=_LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN))
                if call.over:
                    return
                if woken:
                    continue
                if entered(self):
                    refuse_inside()
                if database.has_turn():
                    database.write()  # it refuses: this thread writes already
                if left == 0 and self._withdraw(call):
                    assert timeout is not None
                    raise LockTimeoutError("the writer lock", timeout, os.getpid())
        except BaseException:
            self._withdraw(call)
            raise

    def _withdraw(self, call: _Call) -> bool:
        """Take a call out of the queue; false if it is not there any more."""
        try:
            self._waiting.remove(call)
        except ValueError:
            return False
        return True


def _release(lock: threading.Lock | None) -> None:
    """Wake who sleeps for it, if anybody does."""
    try:
        if lock is not None and lock.locked():
            lock.release()
    except RuntimeError:
        pass  # another thread has just done it
