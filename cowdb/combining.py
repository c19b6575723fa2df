"""Writes of one call, by many threads at once: one thread makes them all, in one transaction.

To put an entry takes microseconds, the pages and the flush of a transaction a
hundred times that.  So while one such call is on its way, others do not each
wait for a turn: they leave in a queue what they want done.  Whoever leads next
does it for all of them, and each gets his own result, or the engine's error for
it, when the transaction is committed.  To each it is a transaction of his own:
nobody reads a state in between, and none returns before it is durable (I9).

    thread 1   leads    begin   put a   put b   put c   commit ---.
    thread 2   leaves "put b" --------'        |                  |-> each returns
    thread 3   leaves "put c" -----------------'                  |
    thread 4   comes during the commit, waits, leads next --------'

Threads that were served together come back together, so the next leader waits
for as many as there were, for a millisecond at most.

The scheme is that of flat combining (Hendler, Incze, Shavit and Tzafrir, 2010).
A leader may be interrupted at any line, also by an exception of a signal's
handler, which is his alone.  So nothing is concluded from what he was about to
do: the transaction says whether it was committed.  A thread that sleeps wakes by
itself now and then; and once it has the lead, nobody else is at its call: if
that was not committed, it does it itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from cowdb.errors import Error, ForkedError, PoisonedError
from cowdb.locks import inside, refuse_inside, tries

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb.transaction import WriteTransaction

__all__ = ["Combiner"]

_LOOK_AGAIN: Final = 0.05
"""Seconds that a thread sleeps at most before it looks by itself whether its call is done, or nobody leads."""

_PATIENCE: Final = 0.001
"""Seconds that a leader waits at most for the others of last time, and no longer than their transaction took."""

_ENGINE: Final = frozenset(
    f"cowdb.{name}" for name in ("bytelocks", "combining", "core", "group", "locks", "pager", "readers", "sharing")
)
"""Who is in the middle of one of these, further up, may have what the leader needs: it must not wait for him."""


class Database(Protocol):
    """What transactions are begun on."""

    lock_timeout: float | None

    def write(self, *, timeout: float | None = None) -> WriteTransaction:
        """Begin a write transaction."""

    def has_turn(self) -> bool:
        """Whether the calling thread is the one who may write."""

    def see_to(self, transaction: WriteTransaction) -> None:
        """Have a transaction come to its end whose commit was interrupted; `PoisonedError` if nobody knows which."""


class _Call:
    """What one thread wants done, and what came of it."""

    __slots__ = ("arguments", "change", "error", "over", "result", "transaction", "wake")

    def __init__(self, change: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.change = change
        self.arguments = arguments
        self.result: Any = None
        self.error: Error | None = None
        self.transaction: WriteTransaction | None = None  # in which it was done last
        self.over = False
        self.wake: threading.Lock | None = None  # for which its thread sleeps

    def make(self, transaction: WriteTransaction) -> None:
        """Do it. The engine's error is for its thread alone, unless the change broke off in the middle."""
        self.transaction = transaction
        self.error = None
        try:
            self.result = self.change(transaction, *self.arguments)
        except Error as error:
            if transaction.changes.torn:
                raise
            error.__context__ = error.__traceback__ = None  # they have what belongs to the leader
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
        self.abandoned = False  # it is a parent's, and this process its forked child

    def write(self, database: Database, change: Callable[..., Any], *arguments: object) -> Any:
        """What ``change(transaction, *arguments)`` returns, when its transaction is committed; raises its `Error`.

        Another thread may call it, and call it again in another transaction if the first one fails: so it runs no
        code of a caller's.  Raises also what beginning and committing do.
        """
        call = _Call(change, arguments)
        if self._lead.locked() or not self._make_if_free(database, call, database.lock_timeout):
            self._wait(database, call)
        error, call.error = call.error, None
        if error is None:
            return call.result
        try:
            raise error
        finally:
            del error  # it has the frame that has it

    # ------------------------------------------------------------ leading

    def _make_if_free(self, database: Database, call: _Call, timeout: float | None) -> bool:
        """Do the call, and others with it, if nobody leads; false if somebody does."""
        mine = False
        try:
            for mine in self._tries:  # noqa: B007 - it is looked at behind it
                break
            if mine and not call.over:
                self._make(database, call, timeout)
        finally:
            if mine:
                self._lead.release()
                self._call_next()
        return mine

    def _make(self, database: Database, own: _Call, timeout: float | None) -> None:
        """Do the call, and all that wait, in one transaction; `own` is over, or this raises what befell it."""
        if own.wake is not None and not self._withdraw(own) and own.transaction is not None:
            # Who led was interrupted, or failed, before he could say how it went.
            database.see_to(own.transaction)
            if own.transaction.committed:
                own.over = True
                return
        if self._last > 1:
            self._gather(timeout)
        others: list[_Call] = []
        try:
            self._make_together(database, own, others, timeout)
        except PoisonedError:
            raise
        except Error:
            if not others or (own.transaction is not None and own.transaction.committed):
                raise
            _make_alone(database, own, timeout)  # perhaps it was another one's fault
        own.over = True

    def _make_together(self, database: Database, own: _Call, others: list[_Call], timeout: float | None) -> None:
        """One transaction; `others` gets the calls that it made besides, and their threads go on."""
        transaction = poisoned = None
        done = False
        begun = 0.0
        try:
            with database.write(timeout=timeout) as transaction:
                begun = time.perf_counter()
                own.make(transaction)
                if self._waiting:
                    self._make_others(others, transaction)
                transaction.commit()  # and not the end of the block: that says nothing of one that was aborted
            done = True
        except PoisonedError as error:
            poisoned = error.args
            raise
        finally:
            self._last = 1 + len(others)
            if others:
                self._ended = time.perf_counter()
                self._seconds = self._ended - begun
                done = done or (transaction is not None and transaction.committed)
                for call in others:
                    if done:
                        call.over = True
                    elif poisoned is not None:
                        call.error = PoisonedError(*poisoned)
                        call.over = True
                    _release(call.wake)  # if it is not over, its thread does it

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

    def _gather(self, timeout: float | None) -> None:
        """Wait for as many calls as were done together last, if that was just now."""
        patience = min(self._seconds, _PATIENCE) if timeout is None else min(self._seconds, _PATIENCE, timeout)
        missing = self._last - 1 - len(self._waiting)
        if missing <= 0 or time.perf_counter() - self._ended > patience:
            return
        full = threading.Lock()
        full.acquire()
        try:
            self._full = full
            if len(self._waiting) + 1 < self._last:
                full.acquire(timeout=patience)
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
        if inside(_ENGINE, 2):  # `write` has called us
            refuse_inside()
        left = timeout = database.lock_timeout
        if timeout == 0 or database.has_turn():
            _make_alone(database, call, timeout)  # which says that this thread has it already, or waits for nothing
            return
        deadline = 0.0 if timeout is None else time.monotonic() + timeout
        wake = call.wake = threading.Lock()
        wake.acquire()
        try:
            self._waiting.append(call)
            if self._full is not None and len(self._waiting) + 1 >= self._last:
                _release(self._full)
            while self._lead.locked() or not self._make_if_free(database, call, left):
                wake.acquire(timeout=_LOOK_AGAIN if not left else min(left, _LOOK_AGAIN))
                if call.over:
                    return
                if self.abandoned:
                    raise ForkedError("this process was forked off in the middle of this call, by its own thread")
                if timeout is not None:
                    left = max(0.0, deadline - time.monotonic())
                    if not left and self._withdraw(call):
                        _make_alone(database, call, left)  # the time for which others do not let it write is up
                        return
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


def _make_alone(database: Database, call: _Call, timeout: float | None) -> None:
    """Do the call in a transaction of its own."""
    with database.write(timeout=timeout) as transaction:
        call.make(transaction)
        transaction.commit()
    call.over = True


def _release(lock: threading.Lock | None) -> None:
    """Wake who sleeps for it, if anybody does."""
    try:
        if lock is not None and lock.locked():
            lock.release()
    except RuntimeError:
        pass  # another thread has just done it
