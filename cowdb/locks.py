"""Who may write, and the words that all users of one file share.

This is the form for one process: the writer lock is a queue of threads, the
shared words are attributes, and a lock on the file itself keeps other
processes out.  Protocol rules P1 and P2 of the commit are upheld with these
words:

    published    the newest meta that readers may see
    durable      D: the newest durable transaction and the slot of its meta;
                 None until this process has re-asserted it (P3)
    busy         a writer is at work, or one has failed and left it so

The file lock is a byte range of the data file itself, far beyond its end (P10),
so that deleting or replacing a side file cannot split the users in two.  It
belongs to the open file description, and the kernel lets it go when the process
dies.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections import deque
from typing import Final

from cowdb.errors import Error, LockTimeoutError

try:
    import fcntl
except ImportError:  # pragma: no cover - a platform without POSIX locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock", "SharedWords", "WriterLock"]

LOCK_OFFSET: Final = 1 << 62
"""Byte of the data file that the lock covers; no file reaches it."""

_POLL_SECONDS: Final = 0.02


class SharedWords:
    """What all users of one file know together; see the module's text."""

    __slots__ = ("busy", "durable")

    def __init__(self) -> None:
        self.durable: tuple[int, int] | None = None
        self.busy = True


class WriterLock:
    """One writer at a time, first come, first served.

    A forgotten transaction gives it back out of a finalizer, which may run at
    any moment, also inside `acquire` of the same thread.  So `release` waits for
    nothing: it leaves a note, and whoever has the mutex acts on it afterwards.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._holder: int | None = None
        self._notes: deque[None] = deque()

    def acquire(self, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: as long as it takes).

        Raises `LockTimeoutError`; `Error` at once if this thread has it already,
        since it would wait for itself.
        """
        me = threading.get_ident()
        wait = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        with self._mutex:
            free = self._holder is None and not self._waiting
            twice = self._holder == me
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

    def _leave(self, place: tuple[int, threading.Lock]) -> bool:
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
                while self._notes:
                    self._notes.popleft()
                    if self._waiting:
                        self._holder, turn = self._waiting.popleft()
                        turn.release()
                    else:
                        self._holder = None
            finally:
                self._mutex.release()


class FileLock:
    """Keeps other processes out of the file: exclusive for a writer, shared for read-only users."""

    def __init__(self, path: str, *, shared: bool, timeout: float) -> None:
        """Take the lock on the file at `path`; `LockTimeoutError` if it is not free within `timeout` seconds."""
        self._fd = -1
        if fcntl is None or not hasattr(fcntl, "F_OFD_SETLK"):  # pragma: no cover - depends on the platform
            return
        request = _request(fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        fd = os.open(path, (os.O_RDONLY if shared else os.O_RDWR) | getattr(os, "O_CLOEXEC", 0))
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(fd)
                    raise
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise LockTimeoutError(f"{path!r}, which another process has open,", timeout) from None
                time.sleep(_POLL_SECONDS)
            except BaseException:
                os.close(fd)
                raise
            else:
                self._fd = fd
                return

    def close(self) -> None:
        """Let the file go, also if a forked child still has the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK))
            finally:
                os.close(fd)

    def abandon(self) -> None:
        """In a forked child: close the descriptor, which is the parent's lock, without letting the lock go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _request(kind: int) -> bytes:
    return struct.pack("hhqqhh", kind, os.SEEK_SET, LOCK_OFFSET, 1, 0, 0)
