"""A snapshot in use: the twin of `cowdb.reading`.

The transactions that a handle has begun lie in a ring, whose head is in the handle, so that beginning and ending
one costs a few stores:

    handle <--> transaction <--> transaction <--> handle

The ring is changed and walked without letting another thread in, and a transaction leaves it before its memory is
given back.  Where the interpreter has no lock that guards this, `FREE_THREADED`, no ring is used.
"""

from __future__ import annotations

import functools

from native.gate import *
from native.tree import *

FREE_THREADED = bool(COWDB_FREE_THREADED)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def unlink(link: cython.pointer[Link]) -> cython.void:
    """Leave the ring. Harmless when repeated."""
    if link.after != cython.NULL:
        link.before.after = link.after
        link.after.before = link.before
        link.before = cython.NULL
        link.after = cython.NULL


@cython.cclass
class Reading(Reader):
    """The main tree of a snapshot that is in use until `close`; see `cowdb.reading.Reading`."""

    _gate: GateState
    _snapshot = cython.declare(Snapshot, visibility="readonly")
    _keeper: object
    names: object
    trees_seen: dict
    link: Link

    def __init__(self, snapshot: Snapshot, keeper, gate: GateState):
        self.use(snapshot, snapshot.tree(), keeper)
        self._gate = gate

    def __dealloc__(self):
        unlink(cython.address(self.link))

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def use(self, snapshot: Snapshot, tree: Reader, keeper) -> cython.void:
        """Look at what `tree` does, which is the main tree of `snapshot`."""
        self._space = tree._space
        if COWDB_FREE_THREADED:
            self.lent = tree._space
        self.root = tree.root
        self.depth = tree.depth
        self._snapshot = snapshot
        self._keeper = keeper

    @property
    def _names(self):
        """The catalog's tree, once it was asked for. Threads may ask for it at the same time, as for the next."""
        with cython.critical_section(self):
            found = self.names
        return found

    @_names.setter
    def _names(self, names):
        with cython.critical_section(self):
            self.names = names

    def named(self):
        """The named trees that were asked for, which end with the transaction. All threads get the same."""
        fresh: dict = {}  # before the look: making it may set the garbage collector going, and that lets others in
        with cython.critical_section(self):
            if self.trees_seen is None:
                self.trees_seen = fresh
            found = self.trees_seen
        return found

    @cython.cfunc
    def asked_for(self) -> dict:
        """What `named` gives, if it was ever asked."""
        with cython.critical_section(self):
            found = self.trees_seen
        return found

    def pinning(self):
        """What gives a mapping that keeps the snapshot alive as long as it is held. Made when it is asked for."""
        with cython.critical_section(self):
            if self._pin is None:
                self._pin = functools.partial(self._keeper.pin, self._snapshot)
            found = self._pin
        return found

    def close(self) -> None:
        """End the transaction; its trees and cursors refuse from then on. Harmless when repeated."""
        self.end()

    def abort(self) -> None:
        """End the transaction, as `close` does."""
        self.close()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def end(self) -> cython.int:
        gate: GateState
        with cython.critical_section(self):  # nobody else ends it
            gate = self._gate
            self._gate = None
        unlink(cython.address(self.link))
        try:
            self.let_go(None)
        finally:
            if gate is not None:
                gate.end_of(self._snapshot)
        return 0

    def abandon(self) -> None:
        """In a forked child: the snapshot is the parent's, who knows nothing of this copy, so every use raises."""
        self._gate = None
        unlink(cython.address(self.link))
        self.let_go(FORKED)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def let_go(self, space) -> cython.int:
        if space is None:
            self._space = None
            self._abandoned = False
        else:
            self.space = space
        if self.names is not None:
            self._names.space = space
        trees: dict = self.asked_for()
        while trees:
            try:
                tree = trees.popitem()[1]
            except KeyError:  # another thread ends it too
                break
            tree.space = space
        return 0

    def __enter__(self):
        """Use it as a block; it ends with it."""
        self.opened()
        return self

    def __exit__(self, kind, error, trace):
        self.end()

    def __del__(self):
        # A reader that was forgotten pins its snapshot no longer than it can be reached.  The garbage collector may
        # call this while this very thread is inside the gate, so nothing here may wait for a lock.
        gate: GateState = self._gate
        unlink(cython.address(self.link))
        if gate is not None:
            self._gate = None
            try:
                self.let_go(None)
            finally:
                gate.leave(self._snapshot)
