"""Which snapshots live: the gate through which every read transaction goes.

    publish(41)   begin -> 41   begin -> 41   publish(42)   begin -> 42
                  41: 1 user    41: 2 users                 41: 2, 42: 1

A snapshot is one committed state with the mapping to read it from.  Beginning
a read counts a user in, ending it counts him out; neither makes a system call.
The first user of a snapshot in this process says so to the others (`sharing`),
and one word tells whether another process has published a newer one.  A
snapshot lives while it has users or is the current one, and the writer asks for
the live ones before it uses a freed page again (I2, P6).

Nobody closes the file under a snapshot that has users, nor under a guest: a
thread that is at work on the file without a snapshot of its own, such as one
that waits to write.  Who is the last to go is told to close it then.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from cowdb.errors import ClosedError, CorruptionError
from cowdb.locks import reachable, refuse_inside, tries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowdb.meta import Meta
    from cowdb.sharing import Sharing
    from cowdb.space import Space
    from cowdb.tree import Reader

__all__ = ["Gate", "Snapshot"]

_PATIENCE: Final = 10_000


class Snapshot:
    """One committed state and the mapping of the file that covers it."""

    __slots__ = ("main", "meta", "pin", "space", "users", "word")

    main: Reader | None

    def __init__(self, meta: Meta, space: Space, word: int) -> None:
        self.meta = meta
        self.space = space
        self.users = 0
        self.word = word  # what says in the shared words that this one is published
        self.main = None  # looks into the main tree, and is what transactions look at; made when needed
        self.pin = 0  # what tells other processes that it is used, while it is


def _transaction(snapshot: Snapshot) -> int:
    return snapshot.meta.transaction


class Gate:
    """Makes and ends the use of snapshots; safe to call from any thread."""

    _snapshot: ClassVar[type[Snapshot]] = Snapshot

    def __init__(self, sharing: Sharing, mapper: Callable[[Meta, Space | None], Space]) -> None:
        """`mapper` gives a mapping that covers a meta's pages, the one before if that will do."""
        self._lock = threading.Lock()
        self._tries = tries(self._lock)
        self._sharing = sharing
        self._mapper = mapper
        self._used: set[Snapshot] = set()
        self._left: deque[Snapshot] = deque()
        self._guests: set[object] = set()
        self._current = self._newest(None)
        self._shut = False
        self.when_idle: Callable[[], None] | None = None  # called when the last user has gone; must wait for nothing

    @property
    def current(self) -> Snapshot:
        """The newest published snapshot."""
        if self._current.word != self._sharing.published:
            with self._lock:
                before = self._current  # it goes when we are out: its end may unmap the file
                self._current = self._newest(before)
            if self._left:
                self._settle()
        return self._current

    @property
    def latest(self) -> Snapshot:
        """The newest snapshot that this process has seen; what it has published itself, if it writes."""
        return self._current

    def _newest(self, before: Snapshot | None) -> Snapshot:
        """The published snapshot; `before` if it is that one."""
        sharing = self._sharing
        for _ in range(_PATIENCE):
            word = sharing.published
            if before is not None and before.word == word:
                return before
            meta = sharing.published_meta(word)
            if meta is not None:
                return self._snapshot(meta, self._mapper(meta, before.space if before is not None else None), word)
        raise CorruptionError(-1, "the lock file holds no published state; close the database in every process")

    def begin(self, held: list[Snapshot] | None = None) -> Snapshot:
        """Use the newest snapshot. O(1), no system call. `ClosedError` if the gate is shut.

        It is put into `held`, if that is given, before this returns.
        """
        sharing = self._sharing
        counted = None
        if self._lock.locked() and not reachable(self._lock, self):
            refuse_inside()
        try:
            try:
                with self._lock:
                    self._refuse_if_shut()
                    while True:
                        snapshot = self._current
                        if snapshot.word != sharing.published:
                            snapshot = self._current = self._newest(snapshot)
                        if snapshot.users:
                            snapshot.users += 1
                            counted = snapshot
                            if held is not None:
                                held.append(snapshot)
                            return snapshot
                        # First say what we are going to use, then look whether it is still the newest: the writer
                        # does it the other way round, so one of the two sees the other (I2).
                        snapshot.pin = sharing.pin(snapshot.meta.transaction, snapshot.meta.page_count)
                        try:
                            if snapshot.word == sharing.published:
                                self._used.add(snapshot)
                                snapshot.users = 1
                                counted = snapshot
                                if held is not None:
                                    held.append(snapshot)
                                return snapshot
                        finally:
                            if not snapshot.users:
                                self._used.discard(snapshot)
                                sharing.unpin(snapshot.pin)
            finally:
                if self._left or self.when_idle is not None:
                    self._settle()
        except BaseException:
            if counted is not None and not held:
                self.leave(counted)  # interrupted on the way out
            raise

    def hold(self, held: list[Snapshot]) -> None:
        """Begin, and put the snapshot into `held`, which is empty: in one step, for whoever interrupts."""
        self.begin(held)

    def drop(self, held: list[Snapshot]) -> None:
        """Stop using what is in `held`, which is empty then. Waits for no lock, so a finalizer may call it."""
        try:  # noqa: SIM105 - `suppress` needs memory
            self._left.extend(iter(held.pop, None))  # one step for whoever interrupts
        except IndexError:
            pass  # that was all
        if self._left or self.when_idle is not None:
            self._settle()

    @contextlib.contextmanager
    def using(self) -> Iterator[Snapshot]:
        """Use the newest snapshot for a block, whoever interrupts."""
        held: list[Snapshot] = []
        try:
            self.hold(held)
            yield held[0]
        finally:
            self.drop(held)

    def _refuse_if_shut(self) -> None:
        if self._shut:
            raise ClosedError("the database was closed in this very moment")

    def again(self, snapshot: Snapshot) -> None:
        """Use a snapshot once more that the caller is using; `ClosedError` if somebody has ended that meanwhile."""
        with self._lock:
            if not snapshot.users:
                raise ClosedError("this transaction was ended in this very moment")
            snapshot.users += 1
        if self._left:
            self._settle()

    def end(self, snapshot: Snapshot) -> None:
        """Stop using a snapshot. O(1), no system call."""
        with self._lock:
            self._end(snapshot)
        if self._left:
            self._settle()
        if self.when_idle is not None:
            self._tell_if_idle()

    def _end(self, snapshot: Snapshot) -> None:
        snapshot.users -= 1
        if not snapshot.users:
            self._used.discard(snapshot)
            self._sharing.unpin(snapshot.pin)

    def leave(self, snapshot: Snapshot) -> None:
        """Stop using a snapshot, now or soon. Waits for no lock, so a finalizer may call it at any moment.

        Only if somebody is inside the gate in this very moment, it is left to
        him, when he comes out: an idle process must not keep pages from the others.
        """
        mine = False
        try:
            for mine in self._tries:  # noqa: B007 - it is looked at behind it
                break
            if mine:
                self._end(snapshot)  # without a note, which might find no memory
            else:
                self._left.append(snapshot)
        finally:
            if mine:
                self._lock.release()
        if self._left or self.when_idle is not None:
            self._settle()

    def _settle(self) -> None:
        """End the uses that finalizers left behind, unless somebody is inside: then he does, as he looks later."""
        while self._left:
            mine = False
            try:
                for mine in self._tries:  # noqa: B007 - it is looked at behind it
                    break
                if not mine:
                    break
                self._end_left()
            finally:
                if mine:
                    self._lock.release()
        if self.when_idle is not None:
            self._tell_if_idle()

    def _end_left(self) -> None:
        """The same. The caller has the lock."""
        while self._left:
            self._end(self._left.popleft())

    def _tell_if_idle(self) -> None:
        when_idle = self.when_idle
        if when_idle is not None and not self._used and not self._guests:
            when_idle()

    @contextlib.contextmanager
    def guest(self) -> Iterator[None]:
        """Be at work on the file, which is not closed meanwhile; `ClosedError` if the gate is shut."""
        guest = object()
        try:
            self.enter(guest)
            yield
        finally:
            self.exit(guest)

    def enter(self, guest: object) -> None:
        """Let `guest` be one until `exit`; `ClosedError` if the gate is shut."""
        if self._lock.locked() and not reachable(self._lock, self):
            refuse_inside()
        with self._lock:
            self._refuse_if_shut()
            self._guests.add(guest)

    def exit(self, guest: object) -> None:
        """Let `guest` be one no longer. Harmless if he is none, as after an interrupt."""
        self._guests.discard(guest)  # one step, so it needs no lock, and no memory
        if self._left or self.when_idle is not None:
            self._settle()

    def let_go(self) -> None:
        """Hold the shared words no longer: they will be unmapped. Only the compiled twin holds them."""

    def publish(self, meta: Meta, raw: bytes, space: Space) -> None:
        """Let the readers that begin from now on, in every process, see `meta`, whose page is `raw`."""
        with self._lock:
            self._current = self._snapshot(meta, space, self._sharing.publish(meta, raw))
        if self._left:
            self._settle()

    def snapshots(self) -> list[Snapshot]:
        """The live snapshots, oldest first. O(live)."""
        with self._lock:
            self._end_left()
            live = self._used | {self._current}
        if self._left:
            self._settle()
        return sorted(live, key=_transaction) if len(live) > 1 else list(live)

    def snapshots_now(self) -> list[Snapshot] | None:
        """The same, in any order; None if somebody is inside the gate. Waits for no lock: a finalizer may call it."""
        mine = False
        found = None
        try:
            for mine in self._tries:  # noqa: B007 - it is looked at behind it
                break
            if mine:
                found = [*self._used, self._current]
        finally:
            if mine:
                self._lock.release()
        if self._left:
            self._settle()
        return found

    def transactions(self) -> list[int]:
        """The transactions of the live snapshots, perhaps one of them twice. O(live)."""
        return [snapshot.meta.transaction for snapshot in self.snapshots()]

    def live(self, sealed: list[int]) -> list[int]:
        """What a freed page must wait for, ascending (P6): `sealed`, all readers, the published one, D.

        A state is sealed, then published, then perhaps read.  It is looked for in
        that order, so that it is found however it moves on meanwhile; and D only
        becomes one of these.
        """
        sharing = self._sharing
        live = set(sealed)
        live.update(self.transactions())
        live.update([pin.transaction for pin in sharing.others()])
        durable = sharing.durable
        if durable is not None:
            live.add(durable[0])
        return sorted(live)

    @property
    def is_shut(self) -> bool:
        """True once `shut` has been."""
        return self._shut

    def shut(self) -> bool:
        """Let nobody begin any more; False, and nothing changed, if a snapshot is in use or a guest is here.

        So it is if this very thread is inside, further up, and a signal's handler is
        asking: when it comes out, it tells whether the gate is idle.
        """
        if self._lock.locked() and not reachable(self._lock, self):
            return False
        with self._lock:
            self._end_left()
            shut = self._shut = not self._used and not self._guests
        if not shut:
            self._settle()  # who left while we were inside may have been the last
        return shut

    def users(self) -> int:
        """Reads that are open now, and views that are held."""
        with self._lock:
            self._end_left()
            users = sum(snapshot.users for snapshot in self._used)
        if self._left:
            self._settle()
        return users
