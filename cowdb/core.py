"""What all handles of one file in a process share: the core, found by device and inode.

    open("a.cowdb") --> Database --+
                                   +--> core --> pager --> storage --> the file
    open("link")    --> Database --+

The core closes when the last handle does, or later, with the last that still
looks into the file: a view of a value that was taken with `get_view`, a copy, a
commit of another thread.  Opening and closing is one thing at a time, in the
registry; a finalizer, which may wait for nobody, leaves word there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from cowdb.errors import Error
from cowdb.locks import tries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.pager import Pager
    from cowdb.readers import Snapshot
    from cowdb.storage import Storage

__all__ = ["Core", "close_idle", "cores", "handles", "registry"]


class Handled(Protocol):
    """A handle, as a fork sees it."""

    def part(self) -> None:
        """In a child: its reads are the parent's."""

    def abandon(self) -> None:
        """In a child: what is open of this handle is the parent's."""


_log: Final = logging.getLogger("cowdb")
registry_lock = threading.RLock()
"""Held by who opens or closes a core."""
_tries = tries(registry_lock)
cores: dict[tuple[int, ...], Core] = {}
"""The cores that are open, by device and inode."""
handles: Final[weakref.WeakSet[Handled]] = weakref.WeakSet()
"""All handles of this process."""
_idle: Final[deque[Core]] = deque()
"""Cores that may be closed, put here by who could not wait for the registry's lock."""
_abandoned: Final[list[Core]] = []
"""Cores of the parent's: kept, for their end would end what is the parent's."""
forks = 0
"""How often this process is a fork of the one that imported this module."""


def _after_fork() -> None:
    """In a child: its parent's cores are not its own.

    Nothing of them is closed but the descriptor of the lock, which would keep the file locked as long as the child
    lives.  Transactions refuse: the parent knows nothing of these copies, and must not be disturbed by a commit.
    """
    global forks, registry_lock, _tries  # noqa: PLW0603 - a lock that the parent held would be held for ever
    forks += 1
    registry_lock = threading.RLock()
    _tries = tries(registry_lock)
    for handle in list(handles):
        handle.part()
    for core in cores.values():
        _abandoned.append(core)
        core.pager.abandon()
    cores.clear()
    _idle.clear()
    for handle in list(handles):
        handle.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def registry() -> Iterator[None]:
    """Be the one who opens and closes cores."""
    try:
        with registry_lock:
            yield
    finally:
        close_idle()


def close_idle() -> None:
    """Close what is idle, unless somebody else is opening or closing: then he does, as he looks when he is done.

    Nobody is here to be told of an error, so the log is.
    """
    lock = registry_lock
    while _idle:
        mine = False
        try:
            for mine in _tries:  # noqa: B007 - it is looked at behind it
                break
            if not mine:
                return
            _close_all_idle()
        finally:
            if mine:
                lock.release()


def _close_all_idle() -> None:
    while _idle:
        core = _idle.popleft()
        try:
            core.close_if_unused()
        except (Error, OSError) as error:
            _log.warning("closing %r failed: %s", core.storage.path, error)


class Core:
    """What all handles of one file in this process share."""

    def __init__(self, key: tuple[int, ...], identity: tuple[int, int], storage: Storage, pager: Pager) -> None:
        """`key` is what the core is found by, `identity` device and inode of the file."""
        self.key = key
        self.storage = storage
        self.identity = identity
        self.pager = pager
        self.handles: set[object] = set()  # what stands for each handle
        self.naming = threading.RLock()  # see `reading.Keeper`

    def owes(self, handle: object) -> bool:
        """Whether `leave` of this handle has not come to its end: what was interrupted goes on when it is repeated."""
        return handle in self.handles or (not self.handles and cores.get(self.key) is self)

    def leave(self, handle: object) -> None:
        """One handle less; the last one closes the file. Harmless when repeated, as after an interrupt."""
        with registry():
            self.handles.discard(handle)
            if not self.handles:
                # Views, copies and the calls of other threads may still use it; who is the last of them closes it then.
                self.pager.gate.when_idle = self.close_soon
                self.close_if_unused()

    def close_soon(self) -> None:
        """Close the file if nobody uses it. A finalizer may call this: it waits for no lock."""
        _idle.append(self)
        close_idle()

    def close_if_unused(self) -> None:
        """Close the file if nobody has a handle or uses a snapshot. The caller is in the registry."""
        if cores.get(self.key) is self and not self.handles and self.pager.gate.shut():
            try:
                self.pager.close()
            finally:
                if self.pager.closed:
                    if cores.get(self.key) is self:  # else a signal's handler has opened the file again meanwhile
                        del cores[self.key]
                    self.pager.gate.when_idle = None  # it led back here, and would keep the mapping

    def pin(self, snapshot: Snapshot) -> Any:
        """A mapping of the file that keeps `snapshot` alive as long as it is held."""
        gate = self.pager.gate
        gate.again(snapshot)
        try:
            # Not all that is mapped for reading: another process may have cut the file meanwhile, above our snapshot.
            size = snapshot.meta.page_size
            pages = min(snapshot.meta.page_count, self.storage.size() // size)
            mapping = self.storage.map(pages * size)
            weakref.finalize(mapping, self._unpin, snapshot, forks).atexit = False
        except BaseException:
            gate.leave(snapshot)
            raise
        return mapping

    def _unpin(self, snapshot: Snapshot, pinned_in: int) -> None:
        """Called by the garbage collector, at any moment: it must not wait for a lock."""
        if pinned_in == forks:  # else the words in the lock file are the parent's
            self.pager.gate.leave(snapshot)
