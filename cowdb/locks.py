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
    """One writer at a time, first come, first served."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._holder: int | None = None

    def acquire(self, timeout: float | None) -> None:
        """Wait for the lock, at most `timeout` seconds (None: as long as it takes).

        Raises `LockTimeoutError`; `Error` at once if this thread has it already,
        since it would wait for itself.
        """
        me = threading.get_ident()
        with self._mutex:
            if self._holder is None and not self._waiting:
                self._holder = me
                return
            if self._holder == me:
                raise Error("this thread has a write transaction open already; commit or abort it first")
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            mine = turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        except BaseException:
            self._leave(turn)
            raise
        if not mine and not self._leave(turn):
            mine = True
        if not mine:
            assert timeout is not None
            raise LockTimeoutError("the writer lock", timeout, os.getpid())
        with self._mutex:
            self._holder = me

    def _leave(self, turn: threading.Lock) -> bool:
        """Stop waiting; False if the lock was handed over meanwhile."""
        with self._mutex:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return True
        return False

    def release(self) -> None:
        """Hand the lock to the thread that has waited longest. Any thread may call it."""
        with self._mutex:
            if self._waiting:
                self._holder = 0  # handed over: whoever wakes up names itself
                self._waiting.popleft().release()
            else:
                self._holder = None


class FileLock:
    """Keeps other processes out of the file: exclusive for a writer, shared for read-only users."""

    def __init__(self, path: str, *, shared: bool, timeout: float) -> None:
        """Take the lock on the file at `path`; `LockTimeoutError` if it is not free within `timeout` seconds."""
        self._fd = -1
        if fcntl is None or not hasattr(fcntl, "F_OFD_SETLK"):  # pragma: no cover - depends on the platform
            return
        import struct

        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        request = struct.pack("hhqqhh", kind, os.SEEK_SET, LOCK_OFFSET, 1, 0, 0)
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
        """Let the file go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
