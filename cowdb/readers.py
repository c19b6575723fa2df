"""Which snapshots live: the gate through which every read transaction goes.

    publish(41)   begin -> 41   begin -> 41   publish(42)   begin -> 42
                  41: 1 user    41: 2 users                 41: 2, 42: 1

A snapshot is one committed state with the mapping to read it from.  Beginning
a read counts a user in, ending it counts him out; neither touches the file.  A
snapshot lives while it has users or is the current one, and the writer asks for
the live ones before it uses a freed page again (I2, P6).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from cowdb.errors import ClosedError

if TYPE_CHECKING:
    from cowdb.meta import Meta
    from cowdb.space import Space

__all__ = ["Gate", "Snapshot"]


class Snapshot:
    """One committed state and the mapping of the file that covers it."""

    __slots__ = ("meta", "space", "users")

    def __init__(self, meta: Meta, space: Space) -> None:
        self.meta = meta
        self.space = space
        self.users = 0


def _transaction(snapshot: Snapshot) -> int:
    return snapshot.meta.transaction


class Gate:
    """Makes and ends the use of snapshots; safe to call from any thread."""

    def __init__(self, meta: Meta, space: Space) -> None:
        self._lock = threading.Lock()
        self._current = Snapshot(meta, space)
        self._used: set[Snapshot] = set()
        self._left: deque[Snapshot] = deque()
        self._shut = False

    @property
    def current(self) -> Snapshot:
        """The newest published snapshot."""
        return self._current

    def begin(self) -> Snapshot:
        """Use the newest snapshot. O(1), no system call."""
        if self._left:
            self._settle()
        with self._lock:
            if self._shut:
                raise ClosedError("the database was closed in this very moment")
            snapshot = self._current
            snapshot.users += 1
            if snapshot.users == 1:
                self._used.add(snapshot)
            return snapshot

    def again(self, snapshot: Snapshot) -> None:
        """Use a snapshot once more that the caller is using."""
        with self._lock:
            assert snapshot.users
            snapshot.users += 1

    def end(self, snapshot: Snapshot) -> None:
        """Stop using a snapshot. O(1), no system call."""
        with self._lock:
            snapshot.users -= 1
            if not snapshot.users:
                self._used.discard(snapshot)

    def leave(self, snapshot: Snapshot) -> None:
        """Stop using a snapshot, soon. Takes no lock, so a finalizer may call it at any moment."""
        self._left.append(snapshot)

    def _settle(self) -> None:
        """End the uses that finalizers left behind."""
        while self._left:
            with contextlib.suppress(IndexError):  # another thread may have been faster
                self.end(self._left.popleft())

    def publish(self, meta: Meta, space: Space) -> None:
        """Let the readers that begin from now on see `meta`."""
        snapshot = Snapshot(meta, space)
        with self._lock:
            self._current = snapshot

    def snapshots(self) -> list[Snapshot]:
        """The live snapshots, oldest first. O(live)."""
        self._settle()
        with self._lock:
            live = self._used | {self._current}
        return sorted(live, key=_transaction) if len(live) > 1 else list(live)

    def shut(self) -> bool:
        """Let nobody begin any more; False, and nothing changed, if a snapshot is in use."""
        self._settle()
        with self._lock:
            self._shut = not self._used
            return self._shut

    def users(self) -> int:
        """Reads that are open now, and views that are held."""
        self._settle()
        with self._lock:
            return sum(snapshot.users for snapshot in self._used)
