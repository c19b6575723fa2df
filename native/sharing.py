"""The words that the users of a file share: the twin of `cowdb.sharing.FileSharing`, for what every transaction asks.

What is common is done here, in one call each: the words are plain memory, nobody else is in the way of a lock.
Everything else is left to the plain form, whose state this is.  The words are asked for anew at each call, since the
lock file may have been mapped anew, or let go.  An interpreter without a lock of its own uses the plain form: there
another thread could let the words go while they are looked at.
"""

from __future__ import annotations

from native.memory import *

from cowdb import bytelocks, lockfile
from cowdb import sharing as plain_sharing
from cowdb.sharing import FileSharing as PlainFileSharing

WORD_PUBLISHED = cython.declare(cython.int, lockfile._PUBLISHED)
WORD_DURABLE = cython.declare(cython.int, lockfile._DURABLE)
WORD_BUSY = cython.declare(cython.int, lockfile._BUSY)
WORD_WRITER = cython.declare(cython.int, lockfile._WRITER)
WORD_USED = cython.declare(cython.int, lockfile._USED)
WORD_WAITING = cython.declare(cython.int, lockfile._WAITING)
WORDS = cython.declare(cython.Py_ssize_t, lockfile._PASSED + 1)
WRITER_BYTE = cython.declare(cython.longlong, bytelocks._BASE + bytelocks.WRITER)
WRITER_BYTES = cython.declare(cython.longlong, plain_sharing._WRITER_AND_STATIC)
PLAIN_PUBLISHED = cython.declare(object, PlainFileSharing.published.fget)
PLAIN_DURABLE = cython.declare(object, PlainFileSharing.durable)
PLAIN_BUSY = cython.declare(object, PlainFileSharing.busy)


@cython.cclass
class SharingState:
    """What the plain form keeps, where C finds it, and the calls that every transaction makes."""

    words = cython.declare(object, visibility="public")
    _locks = cython.declare(object, visibility="public")
    _blocks = cython.declare(set, visibility="public")

    @cython.cfunc
    @cython.inline
    def at(self) -> cython.pointer[u64]:
        """The words; NULL if they are not there, or no plain memory."""
        if self.words is None:
            return cython.NULL
        memory = self.words._words
        if type(memory) is not memoryview:
            return cython.NULL
        buffer: cython.pointer[Py_buffer] = PyMemoryView_GET_BUFFER(memory)
        if buffer.len < 8 * WORDS:
            return cython.NULL
        return cython.cast(cython.pointer[u64], buffer.buf)

    @property
    def published(self):
        """The word of the published state."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL:
            return PLAIN_PUBLISHED(self)
        return load_acquire(words + WORD_PUBLISHED)

    @property
    def durable(self):
        """D."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL:
            return PLAIN_DURABLE.fget(self)
        word: u64 = load_acquire(words + WORD_DURABLE)
        return (word >> 1, word & 1) if word else None

    @durable.setter
    def durable(self, value):
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL or type(value) is not tuple:
            PLAIN_DURABLE.fset(self, value)
            return
        transaction: u64
        slot: u64
        transaction, slot = value
        store_release(words + WORD_DURABLE, transaction << 1 | slot)

    @property
    def busy(self):
        """True while a writer is at work, and after one has failed or died."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL:
            return PLAIN_BUSY.fget(self)
        return load_acquire(words + WORD_BUSY) != 0

    @busy.setter
    def busy(self, value):
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL:
            PLAIN_BUSY.fset(self, value)
            return
        store_release(words + WORD_BUSY, 1 if value else 0)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def alone(self) -> cython.bint:
        """Whether nobody has blocks but we."""
        own: u64 = len(self._blocks)  # first: another thread may just be claiming one more
        words: cython.pointer[u64] = self.at()
        return words != cython.NULL and load_acquire(words + WORD_USED) <= own

    def others(self):
        """The snapshots that other live processes use."""
        return [] if self.alone() else PlainFileSharing.others(self)

    def contended(self):
        """True if another process waits to write."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL or load_acquire(words + WORD_WAITING):
            return PlainFileSharing.contended(self)
        return False

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def lock_bytes(self, release: cython.bint) -> cython.int:
        """Take the writer's bytes, or let them go; 0, or what errno says."""
        if not COWDB_BYTE_LOCKS or type(self._locks) is not bytelocks.ByteLocks:
            return NO_SUCH_CALL
        fd: cython.int = self._locks._fd
        return lock_quickly(fd, release, WRITER_BYTE, WRITER_BYTES)

    def lock_writer(self, timeout):
        """Become the process that writes. One system call when nobody is in the way."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL or load_acquire(words + WORD_WAITING) or self.lock_bytes(False):
            PlainFileSharing.lock_writer(self, timeout)
            return
        words = self.at()  # who was let in meanwhile may have mapped them anew
        if words == cython.NULL:
            PlainFileSharing.lock_writer(self, timeout)
        else:
            store_release(words + WORD_WRITER, process_id())

    def unlock_writer(self):
        """Let another process write."""
        words: cython.pointer[u64] = self.at()
        if words == cython.NULL:
            PlainFileSharing.unlock_writer(self)
            return
        store_release(words + WORD_WRITER, 0)
        if self.lock_bytes(True):
            PlainFileSharing.unlock_writer(self)


class FileSharing(SharingState, PlainFileSharing):
    """One process among the users of a file; see `cowdb.sharing.FileSharing`."""
