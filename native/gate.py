"""Beginning and ending a read: the hot part of the twin of `cowdb.readers.Gate`.

What is common is done here, in one call each: the newest snapshot is the current
one, and a free word is at hand to say that it is used.  Everything else (another
process has published, a new block of words is needed, the words are not plain
memory) is left to the plain gate, whose state this is.

The order of steps is that of `cowdb.lockfile`: store the word, fence, look at the
published word again.  The words are looked at through a buffer that is held for
the call only, so they can be unmapped at any time between.
"""

from __future__ import annotations

from native.memory import *

from cowdb.readers import Gate as PlainGate
from cowdb.sharing import FileSharing

PUBLISHED = cython.declare(cython.int, 1)  # the place of the published word in the lock file


@cython.cfunc
@cython.exceptval(check=False)
def words_of(sharing, buffer: cython.pointer[Py_buffer]) -> cython.bint:
    """Get the shared words as plain memory; False, and nothing is held, if they are not that."""
    if type(sharing) is not FileSharing:
        return False
    try:
        words = sharing.words
        if words is None:
            return False
        memory = words._words
        if type(memory) is not memoryview:
            return False
        PyObject_GetBuffer(memory, buffer, PyBUF_SIMPLE)
    except (BufferError, ValueError):
        return False
    return True


class Gate(PlainGate):
    """Makes and ends the use of snapshots; see `cowdb.readers.Gate`."""

    def begin(self):
        """Use the newest snapshot. O(1), no system call. `ClosedError` if the gate is shut."""
        snapshot = try_begin(self)
        if snapshot is None:
            return PlainGate.begin(self)
        if self._left:
            self._settle()
        return snapshot

    def end(self, snapshot):
        """Stop using a snapshot. O(1), no system call."""
        if not try_end(self, snapshot):
            PlainGate.end(self, snapshot)
            return
        if self._left:
            self._settle()
        if self.when_idle is not None:
            self._tell_if_idle()


@cython.cfunc
def try_begin(gate):
    """The current snapshot, used once more; None, and nothing is done, where the plain gate must look."""
    sharing = gate._sharing
    buffer: Py_buffer
    words: cython.pointer[u64]
    lock = gate._lock
    lock.acquire()
    try:
        snapshot = gate._current
        if gate._shut or not words_of(sharing, cython.address(buffer)):
            return None
        try:
            words = cython.cast(cython.pointer[u64], buffer.buf)
            word: u64 = snapshot.word
            if load_acquire(words + PUBLISHED) != word:
                return None
            users: cython.longlong = snapshot.users
            if not users:
                # First say what we are going to use, then look whether it is still the newest: the writer does
                # it the other way round, so one of the two sees the other (I2).
                free: list = sharing._free_pins
                if not free:
                    return None
                pin = free[-1]
                place: cython.Py_ssize_t = pin
                if not 0 < place < buffer.len // 8 - 1:
                    return None
                meta = snapshot.meta
                transaction: u64 = meta.transaction
                page_count: u64 = meta.page_count
                free.pop()
                store_release(words + place + 1, page_count)
                store_release(words + place, transaction)
                fence()
                if load_acquire(words + PUBLISHED) != word:
                    store_release(words + place, 0)
                    free.append(pin)
                    return None
                snapshot.pin = pin
                gate._used.add(snapshot)
            snapshot.users = users + 1
            return snapshot
        finally:
            PyBuffer_Release(cython.address(buffer))
    finally:
        lock.release()


@cython.cfunc
@cython.exceptval(-1, check=False)
def try_end(gate, snapshot) -> cython.int:
    """Count a user of `snapshot` out: 1; 0, and nothing is done, where the plain gate must look."""
    sharing = gate._sharing
    buffer: Py_buffer
    words: cython.pointer[u64]
    lock = gate._lock
    lock.acquire()
    try:
        users: cython.longlong = snapshot.users
        if users > 1:
            snapshot.users = users - 1
            return 1
        if users < 1 or not words_of(sharing, cython.address(buffer)):
            return 0
        try:
            words = cython.cast(cython.pointer[u64], buffer.buf)
            pin = snapshot.pin
            place: cython.Py_ssize_t = pin
            if not 0 < place < buffer.len // 8:
                return 0
            snapshot.users = 0
            gate._used.discard(snapshot)
            store_release(words + place, 0)
            free: list = sharing._free_pins
            free.append(pin)
            return 1
        finally:
            PyBuffer_Release(cython.address(buffer))
    finally:
        lock.release()
