"""Locks between processes: single bytes far beyond the end of the data file (P10).

A lock belongs to an open file description.  The kernel lets it go when the last
descriptor of that description is closed, so also when its process dies: nothing
is ever left to clear by hand.  Two descriptions in one process exclude each
other like two processes; threads that share one do not, and use a
`threading.Lock` beside it.

    byte   0     OPEN     somebody is entering or leaving; held for a moment
           1     INSIDE   shared by all who have the database open
           2     WRITER   the one who may write
           3     STATIC   shared by readers who cannot register; a writer takes it with WRITER
           4     NEXT     the one who waits for WRITER next, so that nobody starves
           5     TIMED    the one with a timeout who goes for NEXT; the others let him pass when it takes long
           64+i  block i  its owner in the lock file lives

`ByteLocks` uses open-file-description locks (F_OFD_SETLK).  Where they are
missing, `RecordLocks` does the same with POSIX record locks, which belong to
the process and vanish when it closes *any* descriptor of the file; so those are
taken on the lock file, which nobody else opens.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import sys
import time
import weakref
from typing import Final, Protocol

try:
    import fcntl
except ImportError:  # pragma: no cover - a platform without POSIX locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["FIRST_BLOCK", "INSIDE", "NEXT", "OPEN", "STATIC", "TIMED", "WRITER", "ByteLocks", "Locks", "RecordLocks"]

OPEN: Final = 0
INSIDE: Final = 1
WRITER: Final = 2
STATIC: Final = 3
NEXT: Final = 4
TIMED: Final = 5
FIRST_BLOCK: Final = 64

_BASE: Final = 1 << 62
"""The first lock byte; no file reaches it."""

_LINUX: Final = struct.Struct("hhqqhh")  # l_type, l_whence, l_start, l_len, l_pid (with its padding)
_BSD: Final = struct.Struct("qqihhi")  # l_start, l_len, l_pid, l_type, l_whence, l_sysid (FreeBSD); macOS too
_ON_LINUX: Final = sys.platform == "linux"
_TAKEN: Final = {errno.EAGAIN, errno.EACCES}
_FIRST_PAUSE: Final = 0.0002
LONGEST_PAUSE: Final = 0.01
"""Seconds between two tries of one who waits with a deadline, at most."""


class Locks(Protocol):
    """Locks on numbered bytes, each for as long as its holder lives. `count` neighbours are taken all or none."""

    def try_lock(self, byte: int, *, shared: bool = False, count: int = 1) -> bool:
        """Take the lock, or change the kind of one that is held, if that is possible at once."""

    def lock(
        self,
        byte: int,
        deadline: float | None,
        *,
        shared: bool = False,
        count: int = 1,
        longest_pause: float = LONGEST_PAUSE,
    ) -> bool:
        """Take the lock, waiting until `deadline` (`time.monotonic`; None: as long as it takes)."""

    def unlock(self, byte: int, *, count: int = 1) -> None:
        """Let the lock go; harmless if it is not held."""

    def is_taken(self, byte: int, *, shared: bool = False) -> bool:
        """True if somebody else's lock stands in the way of taking it."""

    def close(self) -> None:
        """Let every lock go, also if a forked child still has the descriptor."""

    def abandon(self) -> None:
        """In a forked child: forget the locks, which stay the parent's."""


@functools.lru_cache(maxsize=1024)
def _request(kind: int, start: int, length: int, *, linux: bool = _ON_LINUX) -> bytes:
    """A `struct flock`: which lock on which bytes (length 0: to the end of all)."""
    if linux:
        return _LINUX.pack(kind, os.SEEK_SET, start, length, 0, 0)
    return _BSD.pack(start, length, 0, kind, os.SEEK_SET, 0)


_UNLCK: Final[int] = getattr(fcntl, "F_UNLCK", 0)
_UNLOCK_ALL: Final = _request(_UNLCK, _BASE, 0)
_UNLOCK: Final = [[_request(_UNLCK, _BASE + byte, count) for byte in range(FIRST_BLOCK)] for count in range(3)]
"""Requests to let one or two of the bytes below the blocks go, made beforehand: unlocking needs no memory."""


def _kind(answer: bytes, *, linux: bool = _ON_LINUX) -> int:
    """The kind of lock that a `struct flock` names."""
    found: int = _LINUX.unpack(answer)[0] if linux else _BSD.unpack(answer)[3]
    return found


class ByteLocks:
    """Open-file-description locks on a description of its own. No lock here outlives its process."""

    _may_wait = True
    _set: int = getattr(fcntl, "F_OFD_SETLK", 0)
    _wait: int = getattr(fcntl, "F_OFD_SETLKW", 0)
    _get: int = getattr(fcntl, "F_OFD_GETLK", 0)

    def __init__(self, path: str, *, writable: bool) -> None:
        """Open `path` once more, for the locks alone: mappings must not share this description.

        Without `writable` only shared locks can be had.
        """
        self._fd = -1
        _all.add(self)
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0))

    @staticmethod
    def available() -> bool:
        """True if the platform has open-file-description locks and Python knows them."""
        return hasattr(fcntl, "F_OFD_SETLK")

    def _call(self, command: int, kind: int, byte: int, length: int = 1) -> bytes:
        return fcntl.fcntl(self._fd, command, _request(kind, _BASE + byte, length))

    def identity(self) -> tuple[int, int]:
        """Device and inode of the file that the locks are on."""
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino

    def try_lock(self, byte: int, *, shared: bool = False, count: int = 1) -> bool:
        """See `Locks`."""
        try:
            self._call(self._set, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte, count)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        return True

    def lock(
        self,
        byte: int,
        deadline: float | None,
        *,
        shared: bool = False,
        count: int = 1,
        longest_pause: float = LONGEST_PAUSE,
    ) -> bool:
        """See `Locks`. With a deadline it asks again and again, at growing intervals."""
        if deadline is None and self._may_wait:
            self._call(self._wait, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte, count)
            return True
        pause = _FIRST_PAUSE
        while not self.try_lock(byte, shared=shared, count=count):
            left = longest_pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest_pause)
        return True

    def unlock(self, byte: int, *, count: int = 1) -> None:
        """See `Locks`. It needs no memory; the locks of blocks are let go only with all the others."""
        try:  # noqa: SIM105 - `suppress` needs memory
            fcntl.fcntl(self._fd, self._set, _UNLOCK[count][byte])
        except MemoryError:
            pass  # there was none for its answer; the call itself was made

    def is_taken(self, byte: int, *, shared: bool = False) -> bool:
        """See `Locks`."""
        answer = self._call(self._get, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)
        return bool(_kind(answer) != fcntl.F_UNLCK)

    def close(self) -> None:
        """See `Locks`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                fcntl.fcntl(fd, self._set, _UNLOCK_ALL)
            except MemoryError:
                pass  # see `unlock`
            finally:
                os.close(fd)

    def abandon(self) -> None:
        """See `Locks`. Closing the child's descriptor leaves the parent's lock alone."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_all: Final[weakref.WeakSet[ByteLocks]] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: keep no lock of the parent's alive.

    Also one of a file that another thread was just opening or closing, of which nobody but we know.
    """
    for locks in list(_all):
        locks.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class RecordLocks(ByteLocks):
    """The same with POSIX record locks, which belong to the process; `path` is the lock file.

    A child does not inherit them, and the parent keeps them when a child closes
    its descriptor.  The kernel's wait for them is not used: its search for
    deadlocks takes the threads of a process for one.
    """

    _may_wait = False
    _set: int = getattr(fcntl, "F_SETLK", 0)
    _wait: int = getattr(fcntl, "F_SETLKW", 0)
    _get: int = getattr(fcntl, "F_GETLK", 0)
