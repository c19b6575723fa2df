"""Beginning and ending a read: the hot part of the twin of `cowdb.readers.Gate`.

What is common is done here, in one call each: the newest snapshot is the current
one, and a free word is at hand to say that it is used.  Everything else (another
process has published, a new block of words is needed, the words are not plain
memory, somebody is inside the gate) is left to the plain gate, whose state this is.

The order of steps is that of `cowdb.lockfile`: store the word, fence, look at the
published word again.  The words are looked at through a window that is kept while the file is open; who closes
the file, and a forked child, lets it go first.

Who is inside the gate has its lock, as in the plain form.  What is done here lets no other thread in: it runs no
Python code and makes nothing that the garbage collector counts.  So where the interpreter has a
lock of its own, it is enough to see that nobody is inside; where it has none, the gate's lock is taken.
There, too, an attribute that is replaced while others look at it is read and written in a critical section of its
object: between finding the old value and holding it, it could die.
"""

from __future__ import annotations

from native.locks import *
from native.memory import *
from native.sharing import *
from native.tree import *

from cowdb import lockfile
from cowdb.readers import Gate as PlainGate

PLAIN_CURRENT = cython.declare(object, PlainGate.current.fget)
COPIES_AT = cython.declare(cython.Py_ssize_t, lockfile.COPIES_AT)
COPY_SIZE = cython.declare(cython.Py_ssize_t, lockfile.COPY_SIZE)


@cython.cclass
class Snapshot:
    """One committed state and the mapping of the file that covers it; see `cowdb.readers.Snapshot`."""

    meta = cython.declare(object, visibility="readonly")
    space = cython.declare(Space, visibility="readonly")
    users = cython.declare(cython.longlong, visibility="public")
    word = cython.declare(u64, visibility="readonly")
    pin = cython.declare(object, visibility="public")
    _main: Reader  # its root is that of all transactions that use it; made when needed
    transaction: u64
    page_count: u64

    def __init__(self, meta, space: Space, word: u64):
        self.transaction = meta.transaction
        self.page_count = meta.page_count
        self.meta = meta
        self.space = space
        self.word = word
        self.users = 0
        self.pin = 0

    @property
    def main(self):
        """Looks into the main tree, for who asks once and needs no transaction."""
        return self.tree()

    @cython.cfunc
    @cython.inline
    def tree(self) -> Reader:
        found: Reader
        with cython.critical_section(self):
            if self._main is None:
                self._main = Reader(self.space, self.meta.main)
            found = self._main
        return found


@cython.no_gc_clear
@cython.cclass
class GateState:
    """What the plain gate keeps, where C finds it, and the two calls that every read makes."""

    newest: Snapshot  # changed by who is inside, and in a critical section
    _shut = cython.declare(cython.bint, visibility="public")
    _used = cython.declare(set, visibility="public")
    _left = cython.declare(object, visibility="public")
    _guests = cython.declare(set, visibility="public")
    _lock = cython.declare(object, visibility="public")
    _sharing = cython.declare(object, visibility="public")
    _when_idle: object
    _door: Door
    _free: list  # the words that are not in use, as the sharing has them
    _window: Window
    _words: cython.pointer[u64]
    _count: cython.Py_ssize_t
    _blind: cython.bint  # it shall look at no words any more

    @property
    def _current(self):
        """The newest snapshot that this process has seen."""
        found: Snapshot
        with cython.critical_section(self):
            found = self.newest
        return found

    @_current.setter
    def _current(self, snapshot: Snapshot):
        before: Snapshot  # its end may unmap the file: not in the critical section
        with cython.critical_section(self):
            before = self.newest
            self.newest = snapshot
        del before

    @property
    def when_idle(self):
        """Called when the last user has gone."""
        with cython.critical_section(self):
            found = self._when_idle
        return found

    @when_idle.setter
    def when_idle(self, call):
        with cython.critical_section(self):
            self._when_idle = call

    @property
    def latest(self):
        """The newest snapshot that this process has seen."""
        return self._current

    @property
    def current(self):
        """The newest published snapshot."""
        snapshot: Snapshot = None
        if self.come_in():
            if self._words != cython.NULL and load_acquire(self._words + WORD_PUBLISHED) == self.newest.word:
                snapshot = self.newest
            self.go_out()
        return PLAIN_CURRENT(self) if snapshot is None else snapshot

    def begin(self):
        """Use the newest snapshot. O(1), no system call. `ClosedError` if the gate is shut."""
        snapshot: Snapshot = self.enter_now()
        try:
            if snapshot is None:
                snapshot = PlainGate.begin(self)
                self.look()
            elif self._left:
                self._settle()
        except BaseException:
            if snapshot is not None:
                self._left.append(snapshot)  # interrupted on the way out: who comes next counts it out
            raise
        return snapshot

    def hold(self, held: list) -> None:
        """Begin, and put the snapshot into `held`: in one step, for whoever interrupts."""
        snapshot: Snapshot = GateState.begin(self)
        try:
            held.append(snapshot)
        except MemoryError:
            self.leave(snapshot)
            raise

    def drop(self, held: list) -> None:
        """Stop using what is in `held`, which is empty then. Waits for no lock."""
        snapshot: Snapshot
        while held:
            snapshot = held.pop()
            if not self.leave_now(snapshot):
                self._left.append(snapshot)
        if self._left or self._when_idle is not None:
            self._settle()

    def end(self, snapshot: Snapshot):
        """Stop using a snapshot. O(1), no system call."""
        self.end_of(snapshot)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def end_of(self, snapshot: Snapshot) -> cython.int:
        if not self.leave_now(snapshot):
            try:
                self._left.append(snapshot)  # first: an interrupt can come as soon as Python is entered
            except MemoryError:
                PlainGate.end(self, snapshot)
            else:
                self._settle()
        elif self._left:
            self._settle()
        elif self._when_idle is not None:
            self._tell_if_idle()
        return 0

    def _end(self, snapshot: Snapshot) -> None:
        """Count a user out; in one step, for whoever interrupts, where the words are memory. The caller is inside."""
        snapshot.users -= 1
        if not snapshot.users and (self._words == cython.NULL or not self.unsay(snapshot)):
            self._used.discard(snapshot)
            self._sharing.unpin(snapshot.pin)

    def _end_left(self) -> None:
        """End the uses that were left behind. The caller is inside."""
        while self._left:
            GateState._end(self, self._left.popleft())

    # ------------------------------------------------------------ for who writes

    def enter(self, guest) -> None:
        """Let `guest` be one until `exit`; `ClosedError` if the gate is shut."""
        if not self.come_in():
            PlainGate.enter(self, guest)
            return
        if self._shut:
            self.go_out()
            PlainGate.enter(self, guest)
            return
        try:
            self._guests.add(guest)
        finally:
            self.go_out()

    def transactions(self) -> list:
        """The transactions of the live snapshots, perhaps one of them twice. O(live)."""
        if self._left or not self.come_in():
            return PlainGate.transactions(self)
        snapshot: Snapshot = self.newest
        try:
            found: list = [snapshot.transaction]
            for other in self._used:
                found.append(cython.cast(Snapshot, other).transaction)
        finally:
            self.go_out()
        return found

    def live(self, sealed: list) -> list:
        """What a freed page must wait for, ascending (P6); in the order of looking that the plain form explains."""
        sharing = self._sharing
        if sealed or self._left or not isinstance(sharing, SharingState) or not self.come_in():
            return PlainGate.live(self, sealed)
        snapshot: Snapshot = self.newest
        try:
            found: set = {cython.cast(Snapshot, other).transaction for other in self._used}
            found.add(snapshot.transaction)
        finally:
            self.go_out()
        if not cython.cast(SharingState, sharing).alone():
            return PlainGate.live(self, sealed)
        durable = sharing.durable
        if durable is not None:
            found.add(durable[0])
        return sorted(found)

    def publish(self, meta, raw: bytes, space: Space) -> None:
        """Let the readers that begin from now on, in every process, see `meta`, whose page is `raw`."""
        words: cython.pointer[u64] = self._words
        length: cython.Py_ssize_t = PyBytes_GET_SIZE(raw)
        if words == cython.NULL or length > COPY_SIZE or 8 * self._count < COPIES_AT + 2 * COPY_SIZE:
            PlainGate.publish(self, meta, raw, space)
            return
        # As `cowdb.lockfile` does it: the copy that nobody looks at, a fence, the word.
        copy: u64 = 1 - (load_acquire(words + WORD_PUBLISHED) & 1)
        snapshot: Snapshot = Snapshot(meta, space, 0)
        snapshot.word = snapshot.transaction << 1 | copy
        if not self.come_in():
            PlainGate.publish(self, meta, raw, space)
            return
        memcpy(cython.cast(Bytes, words) + COPIES_AT + copy * COPY_SIZE, bytes_at(raw), length)
        fence()
        store_release(words + WORD_PUBLISHED, snapshot.word)
        fence()
        before: Snapshot  # its end may unmap the file, which lets other threads in: not while inside
        with cython.critical_section(self):
            before = self.newest
            self.newest = snapshot
        self.go_out()
        del before
        if self._left:
            self._settle()

    def let_go(self):
        """Hold the shared words no longer, nor ever again: they will be unmapped."""
        self._blind = True
        self._words = cython.NULL
        self._window = None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def look(self) -> cython.int:
        """Get hold of the words, if they are plain memory that this gate has not seen yet."""
        sharing = self._sharing
        kind = type(sharing)
        if self._blind or kind is not FileSharing and kind is not PlainFileSharing:
            return 0
        if COWDB_FREE_THREADED and self._words != cython.NULL:
            return 0
        lock_file = sharing.words
        if lock_file is None:
            return 0
        memory = lock_file._words
        if type(memory) is not memoryview or self._window is not None and self._window.data is memory:
            return 0
        window = Window(memory)
        with cython.critical_section(self):
            if not COWDB_FREE_THREADED or self._words == cython.NULL:
                self._free = sharing._free_pins
                self._count = window.length // 8
                self._window = window
                self._words = cython.cast(cython.pointer[u64], window.at)
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def come_in(self) -> cython.bint:
        """Be inside for what lets nobody else in; False if somebody is."""
        if COWDB_FREE_THREADED:
            return self._door is not None and try_take(self._door)
        return self._words != cython.NULL and not self._door.held

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def go_out(self) -> cython.void:
        if COWDB_FREE_THREADED:
            give_back(self._door)

    @cython.cfunc
    def enter_now(self) -> Snapshot:
        """The current snapshot, used once more; None, and nothing is done, where the plain gate must look."""
        if not self.come_in():
            return None
        snapshot: Snapshot = self.newest
        if not self.count_in(snapshot):
            snapshot = None
        self.go_out()
        return snapshot

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def count_in(self, snapshot: Snapshot) -> cython.bint:
        words: cython.pointer[u64] = self._words
        if self._shut or words == cython.NULL or load_acquire(words + WORD_PUBLISHED) != snapshot.word:
            return False
        if not snapshot.users and not self.say(snapshot):
            return False
        snapshot.users += 1
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def say(self, snapshot: Snapshot) -> cython.bint:
        """Tell the other processes that we use a snapshot; False if it cannot be done here, or not with this one."""
        words: cython.pointer[u64] = self._words
        free: list = self._free
        last: cython.Py_ssize_t = PyList_GET_SIZE(free) - 1
        if last < 0:
            return False
        try:
            pin = free[last]
            place: cython.Py_ssize_t = pin
            if not 0 < place < self._count - 1:
                return False
            self._used.add(snapshot)
            free.pop()
        except (MemoryError, TypeError):
            return False
        # First say what we are going to use, then look whether it is still the newest: the writer does
        # it the other way round, so one of the two sees the other (I2).
        snapshot.pin = pin
        store_release(words + place + 1, snapshot.page_count)
        store_release(words + place, snapshot.transaction)
        fence()
        if load_acquire(words + WORD_PUBLISHED) == snapshot.word:
            return True
        self.unsay(snapshot)
        return False

    @cython.cfunc
    @cython.exceptval(check=False)
    def unsay(self, snapshot: Snapshot) -> cython.bint:
        place: cython.Py_ssize_t
        try:
            place = snapshot.pin
        except TypeError:
            return False
        if not 0 < place < self._count - 1:
            return False
        self._used.discard(snapshot)
        store_release(self._words + place, 0)
        try:
            self._free.append(snapshot.pin)
        except MemoryError:
            pass  # a word less, of very many
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def leave_now(self, snapshot: Snapshot) -> cython.bint:
        """Count a user of `snapshot` out; False, and nothing is done, where the plain gate must look."""
        if not self.come_in():
            return False
        done: cython.bint = True
        if snapshot.users > 1:
            snapshot.users -= 1
        elif snapshot.users == 1 and self._words != cython.NULL and self.unsay(snapshot):
            snapshot.users = 0
        else:
            done = False
        self.go_out()
        return done


@cython.cfunc
@cython.exceptval(check=False)
def try_take(lock: Door) -> cython.bint:
    """Take a lock; False if somebody has it: the plain gate waits for it."""
    try:
        return lock.acquire(False)
    except MemoryError:
        return False


@cython.cfunc
@cython.exceptval(check=False)
def give_back(lock: Door) -> cython.void:
    lock.release()


class Gate(GateState, PlainGate):
    """Makes and ends the use of snapshots; see `cowdb.readers.Gate`."""

    _snapshot = Snapshot

    def __init__(self, sharing, mapper):
        PlainGate.__init__(self, sharing, mapper)
        adopt(self)


@cython.cfunc
def adopt(gate: GateState):
    """Put a lock that can be looked at in the place of the plain one, before anybody knows the gate."""
    gate._door = gate._lock = Door(gate._lock)
    gate._tries = tries(gate._door)
