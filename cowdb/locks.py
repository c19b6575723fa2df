"""Who may write, among the threads of one process: a queue, first come, first served.

Between processes, `sharing` decides; a thread asks there when its turn in the
queue has come.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Final

from cowdb.errors import Error, LockTimeoutError

__all__ = ["WriterLock"]


_thread: Final = threading.local()


def _me() -> object:
    """What stands for this thread alone; its number will do for another one when it has ended."""
    try:
        found: object = _thread.me
    except AttributeError:
        found = _thread.me = object()
    return found


class WriterLock:
    """One writer at a time, first come, first served.

    A forgotten transaction gives it back out of a finalizer, which may run at
    any moment, also inside `acquire` of the same thread.  So `release` waits for
    nothing: it leaves a note, and whoever has the mutex acts on it afterwards.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[object, threading.Lock]] = deque()
        self._holder: object = None  # a thread, as `_me` names it
        self._notes: deque[None] = deque()

    def acquire(self, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: as long as it takes).

        Raises `LockTimeoutError`; `Error` at once if this thread has it already,
        since it would wait for itself.
        """
        me = _me()
        wait = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        with self._mutex:
            self._do_notes()  # our own release may be among them, noted while somebody else had the mutex
            free = self._holder is None and not self._waiting
            twice = self._holder is me
            if free:
                self._holder = me
            elif not twice:
                turn = threading.Lock()
                turn.acquire()
                place = (me, turn)
                self._waiting.append(place)
        if self._notes:
            self._act_on_notes()
        if free:
            return
        if twice:
            raise Error("this thread has a write transaction open already; commit or abort it first")
        try:
            mine = turn.acquire(timeout=wait)
        except BaseException:
            if not self._leave(place):
                self.release()  # it was handed over in the same moment
            raise
        if not mine and self._leave(place):
            assert timeout is not None
            raise LockTimeoutError("the writer lock", timeout, os.getpid())

    def acquire_if_free(self) -> bool:
        """Take the lock if nobody has it or waits for it; True if it is taken now."""
        if not self._mutex.acquire(blocking=False):
            return False  # somebody is just taking it or letting it go, and will look himself
        try:
            free = self._holder is None and not self._waiting
            if free:
                self._holder = _me()
        finally:
            self._mutex.release()
        self._act_on_notes()
        return free

    def _leave(self, place: tuple[object, threading.Lock]) -> bool:
        """Stop waiting; False if the lock was handed over meanwhile."""
        with self._mutex:
            waiting = place in self._waiting
            if waiting:
                self._waiting.remove(place)
        self._act_on_notes()
        return waiting

    def release(self) -> None:
        """Hand the lock to the thread that has waited longest. Any thread may call it, and any finalizer."""
        self._notes.append(None)
        self._act_on_notes()

    def _act_on_notes(self) -> None:
        """Do the releases that were noted, unless somebody has the mutex: then he does them, as he looks later."""
        while self._notes and self._mutex.acquire(blocking=False):
            try:
                self._do_notes()
            finally:
                self._mutex.release()

    def _do_notes(self) -> None:
        """Do the releases that were noted. The caller has the mutex."""
        while self._notes:
            self._notes.popleft()
            if self._waiting:
                self._holder, turn = self._waiting.popleft()
                turn.release()
            else:
                self._holder = None
