"""Who may write, among the threads of one process: the twin of `cowdb.locks`, as far as nobody waits.

That is the usual case.  What is done here lets no other thread in, so it takes no lock; it only looks that nobody has
it.  An interpreter without a lock of its own uses the plain form.
"""

from __future__ import annotations

import cython

from cowdb.locks import WriterLock as PlainWriterLock
from cowdb.locks import me, tries


@cython.final
@cython.cclass
class Door:
    """A lock, of which one sees without taking it whether somebody has it."""

    held: cython.bint
    _lock: object

    def __init__(self, lock):
        self._lock = lock

    def acquire(self, blocking=True, timeout=-1):
        """Take it; False if somebody has it, and `blocking` is false or he has it for longer than `timeout` seconds."""
        if not self._lock.acquire(blocking, timeout):
            return False
        self.held = True
        return True

    def release(self) -> None:
        """Let it go."""
        self.held = False
        self._lock.release()

    def locked(self):
        """True if somebody has it."""
        return self._lock.locked()

    def __enter__(self):
        self._lock.acquire()
        self.held = True
        return True

    def __exit__(self, kind, error, trace):
        self.held = False
        self._lock.release()


@cython.final
@cython.cclass
class Turn:
    """One thread's wish to write; see `cowdb.locks.Turn`."""

    me = cython.declare(object, visibility="readonly")
    _wake = cython.declare(object, visibility="public")
    over = cython.declare(cython.bint, visibility="public")

    def __init__(self):
        self.me = me()

    @property
    def thread(self):
        """Whose turn it is."""
        return self.me.thread


@cython.cclass
class WriterLockState:
    """What the plain form keeps, where C finds it, and the calls that every transaction makes."""

    _mutex = cython.declare(object, visibility="public")
    _tries = cython.declare(object, visibility="public")
    _waiting = cython.declare(object, visibility="public")
    _holder = cython.declare(Turn, visibility="public")
    _door: Door

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def quiet(self) -> cython.bint:
        """Whether nobody waits, nor is just taking the lock or letting it go."""
        return not self._door.held and not self._waiting

    def acquire(self, timeout, turn: Turn | None = None):
        """Wait for the lock, at most `timeout` seconds."""
        if timeout is None and turn is not None and self._holder is None and self.quiet():
            self._holder = turn
        else:
            PlainWriterLock.acquire(self, timeout, turn)

    def acquire_if_free(self, turn: Turn | None = None):
        """Take the lock if nobody has it or waits for it; True if it is taken now. `turn` may be one that is over."""
        if turn is None or not self.quiet() or (self._holder is not None and self._holder.over):
            return PlainWriterLock.acquire_if_free(self, turn)
        if self._holder is not None:
            return False
        turn.over = False
        self._holder = turn
        return True

    def holds(self, turn: Turn):
        """Whether the lock is this turn's, which is not over."""
        return self._holder is turn and not turn.over

    def release(self, turn: Turn | None = None):
        """Hand the lock to the thread that has waited longest. It needs no memory."""
        if turn is not None and self._holder is turn and self.quiet():
            turn.over = True
            self._holder = None
        else:
            PlainWriterLock.release(self, turn)


class WriterLock(WriterLockState, PlainWriterLock):
    """One writer at a time, first come, first served; see `cowdb.locks.WriterLock`."""

    _turn = Turn

    def __init__(self):
        PlainWriterLock.__init__(self)
        hang_lock(self)


@cython.cfunc
@cython.exceptval(-1, check=False)
def hang_lock(lock: WriterLockState) -> cython.int:
    """Put a door in the place of the plain mutex, before anybody knows the lock."""
    lock._door = lock._mutex = Door(lock._mutex)
    lock._tries = tries(lock._door)
    return 0
