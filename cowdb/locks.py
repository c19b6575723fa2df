"""Who may write, among the threads of one process: a queue, first come, first served.

Between processes, `sharing` decides; a thread asks there when its turn in the
queue has come.

A `Turn` stands for one thread's wish to write, from before it asks until it is
over.  It makes the end of a turn something that may be said twice: memory can
run out, or Ctrl-C come, in the middle of any clean-up, which is then repeated,
when the lock may be somebody else's by now.

    Turn --> waiting --> holder --> over
               '-------------------'      gave up
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

from cowdb.errors import Error, LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from types import FrameType
    from typing import Protocol

    class Lockable(Protocol):
        """A lock of `threading`."""

        def acquire(self, blocking: bool = ..., timeout: float = ..., /) -> bool:
            """Take it; False if that takes waiting and `blocking` is false, or waiting for longer than `timeout`."""

        def release(self) -> None:
            """Let it go."""


__all__ = ["Turn", "WriterLock", "inside", "me", "reachable", "refuse_inside", "tries"]

INSIDE: Final = (
    "this thread is in the middle of a call to this database, further up; a signal's handler had better raise an "
    "exception, or set a flag"
)
_LONG: Final = 0.25
_thread: Final = threading.local()


class Me:
    """What stands for one thread alone; its number will do for another one when it has ended."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.current_thread()


def me() -> Me:
    """What stands for the calling thread."""
    try:
        found: Me = _thread.me
    except AttributeError:
        found = _thread.me = Me()
    return found


def tries(lock: Lockable) -> Iterator[bool]:
    """Tries to take `lock` at once, without end: after ``for mine in tries: break`` it is `mine` or somebody else's.

    A plain call looks for signals when it returns, before its result has a name.
    An interrupt there would leave the lock taken, and nobody would know; the step
    of a `for` does not look.  It needs no memory.
    """
    return iter(partial(lock.acquire, False), None)


def reachable(lock: Lockable, owner: object) -> bool:
    """Wait until nobody has `lock`, which is `owner`'s; False if that would be waiting for oneself.

    So it is if this thread is in a method of `owner` already, and asks for it again out of a signal's handler.
    O(depth of the stack) for each quarter of a second that it waits.
    """
    mine = False
    try:
        for mine in iter(partial(lock.acquire, True, _LONG), None):
            if mine or _entered(owner):
                break
    finally:
        if mine:
            lock.release()
    return mine


def _entered(owner: object) -> bool:
    """Whether the method of `owner` that asks was called by something that another method of it has called."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - its documented name
    while frame is not None and frame.f_locals.get("self") is owner:
        frame = frame.f_back  # methods that call each other
    while frame is not None and frame.f_locals.get("self") is not owner:
        frame = frame.f_back
    return frame is not None


def inside(modules: Container[object], above: int) -> bool:
    """Whether this thread is in the middle of a function of one of these modules, as a handler or a finalizer may be.

    It looks at the function as far `above` the one that asks, and at what has called it.  O(depth of the stack).
    """
    frame: FrameType | None = sys._getframe(above + 1)  # noqa: SLF001 - its documented name
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            return True
        frame = frame.f_back
    return False


def refuse_inside() -> NoReturn:
    """What a signal's handler is told, who would wait for his own thread."""
    raise Error(INSIDE)


class Turn:
    """One thread's wish to write; made before the lock is asked for."""

    __slots__ = ("_wake", "me", "over")

    def __init__(self) -> None:
        self.me = me()
        self._wake: threading.Lock | None = None  # released when the lock is handed over
        self.over = False

    @property
    def thread(self) -> threading.Thread:
        """Whose turn it is."""
        return self.me.thread


class WriterLock:
    """One writer at a time, first come, first served.

    A forgotten transaction gives it back out of a finalizer, which may run at
    any moment, also inside `acquire` of the same thread.  So `release` waits for
    nothing: it says that the turn is over, and whoever has the mutex hands the
    lock on afterwards.  That needs no memory, and may be broken off anywhere: who
    comes next goes on with it.
    """

    _turn: ClassVar[type[Turn]] = Turn

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tries = tries(self._mutex)
        self._waiting: deque[Turn] = deque()
        self._holder: Turn | None = None

    def acquire(self, timeout: float | None, turn: Turn | None = None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: as long as it takes).

        Whatever it raises, and also if an interrupt comes just when it returns,
        `release` of the same `turn` sees to it that nothing is kept.

        Raises `LockTimeoutError`; `Error` at once if this thread has it already,
        since it would wait for itself.
        """
        if turn is None:
            turn = self._turn()
        wait = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if self._mutex.locked() and not reachable(self._mutex, self):
            refuse_inside()
        with self._mutex:
            if self._holder is not None or self._waiting:
                self._hand_on()  # our own last turn may have ended while somebody else had the mutex
            holder = self._holder
            if holder is None:
                self._holder = turn
            elif holder.me is not turn.me and not any(
                other.me is turn.me and not other.over for other in self._waiting
            ):
                wake = turn._wake = threading.Lock()  # noqa: SLF001 - a turn and its lock are one
                wake.acquire()
                self._waiting.append(turn)
        if self._due():
            self._act()
        if holder is None:
            return
        if turn._wake is None:  # noqa: SLF001
            if holder.me is not turn.me:
                refuse_inside()
            raise Error("this thread has a write transaction open already; commit or abort it first")
        try:
            mine = wake.acquire(timeout=wait)
        except BaseException:
            self.release(turn)
            raise
        if not mine and not self.holds(turn):
            self._leave(turn, timeout)

    def _leave(self, turn: Turn, timeout: float | None) -> None:
        """Stop waiting, unless the lock was handed over in this very moment."""
        try:
            with self._mutex:
                late = self._holder is not turn
                if late:
                    turn.over = True
                    if turn in self._waiting:
                        self._waiting.remove(turn)
        finally:
            if self._due():
                self._act()
        if late:
            assert timeout is not None
            raise LockTimeoutError("the writer lock", timeout, os.getpid())

    def acquire_if_free(self, turn: Turn | None = None) -> bool:
        """Take the lock if nobody has it or waits for it; True if it is taken now. `turn` may be one that is over."""
        if turn is None:
            turn = self._turn()
        mine = free = False
        try:
            for mine in self._tries:  # noqa: B007 - it is looked at behind it
                break
            if mine:  # else somebody is just taking it or letting it go, and will look himself
                self._hand_on()
                free = self._holder is None
                if free:
                    turn.over = False
                    self._holder = turn
        finally:
            if mine:
                self._mutex.release()
        if self._due():
            self._act()
        return free

    def is_mine(self) -> bool:
        """Whether the calling thread has the lock."""
        holder = self._holder
        return holder is not None and holder.me is me() and not holder.over

    def holds(self, turn: Turn) -> bool:
        """Whether the lock is this turn's, which is not over."""
        return self._holder is turn and not turn.over

    def release(self, turn: Turn | None = None) -> None:
        """Hand the lock to the thread that has waited longest. Any thread may call it, and any finalizer.

        Without a `turn` it is that of the holder.  Harmless when repeated.  It
        needs no memory.
        """
        if turn is None:
            turn = self._holder
            assert turn is not None
        again = turn.over and self._holder is not turn  # repeated: it was handed on already
        turn.over = True
        if again and not self._waiting:
            return
        try:
            self._act()
        except BaseException:
            self._act()  # who waits would not come by to do it
            raise

    def _due(self) -> bool:
        """Whether something was left to do by who could not wait for the mutex, or was interrupted."""
        holder = self._holder
        waiting = self._waiting
        if holder is None or holder.over:
            return holder is not None or bool(waiting)
        try:
            return bool(waiting) and waiting[0] is holder
        except IndexError:  # who has the mutex was just taking it out
            return False

    def _act(self) -> None:
        """Hand on what is due, unless somebody has the mutex: then he does, as he looks later."""
        while self._due():
            mine = False
            try:
                for mine in self._tries:  # noqa: B007 - it is looked at behind it
                    break
                if not mine:
                    return
                self._hand_on()
            finally:
                if mine:
                    self._mutex.release()

    def _hand_on(self) -> None:
        """Hand the lock on if the holder's turn is over. The caller has the mutex.

        The next one is the holder before he is woken, and waits in the queue until
        he is.  So each step can be seen, and done again.
        """
        waiting = self._waiting
        while True:
            holder = self._holder
            if holder is None or holder.over:
                if not waiting:
                    self._holder = None
                    return
                following = waiting[0]
                if following is holder or following.over:
                    waiting.popleft()
                else:
                    self._holder = following
            elif waiting and waiting[0] is holder:
                wake = holder._wake  # noqa: SLF001 - a turn and its lock are one
                assert wake is not None
                if wake.locked():
                    wake.release()
                waiting.popleft()
            else:
                return
