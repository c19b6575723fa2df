"""The reading half of an open database: the twin of `cowdb.handle`.

`gate` is the gate of the core, and None whenever the plain form would find something to do: after `close`, and in
a forked child until the file has been opened again.  Between the look at it and the moment when a transaction lies
in the ring no other thread comes in, so nobody can close the handle in between.

An interpreter without a lock of its own uses the plain form, with the compiled `Reading` and `Gate`: a ring cannot
be walked while other threads give the memory of its members back.
"""

from __future__ import annotations

from native.reading import *

from cowdb.handle import Handle as PlainHandle

NOTHING = cython.declare(tuple, ())


@cython.cclass
class Handle:
    """Begins reads of the newest state, and knows which are open; see `cowdb.handle.Handle`."""

    _state: object  # what `_core` is
    _kind: object
    gate: GateState
    head: Link

    def __init__(self, kind):
        if not issubclass(kind, Reading):
            raise TypeError(f"{kind!r} is no kind of transaction that reads")
        self._kind = kind

    def __cinit__(self):
        self.head.before = self.head.after = cython.address(self.head)

    def __dealloc__(self):
        while self.head.after != cython.address(self.head):
            unlink(self.head.after)

    @classmethod
    def __class_getitem__(cls, parameters):
        return cls

    @property
    def _core(self):
        """What all handles of the file share; None after `close`."""
        return self._state

    @_core.setter
    def _core(self, core):
        gate = None if core is None else core.pager.gate
        self.gate = gate if isinstance(gate, GateState) else None
        self._state = core

    def part(self) -> None:
        """In a forked child: the next call finds out anew what it may use."""
        self.gate = None

    def readings(self):
        """The transactions of `read` that are open."""
        found: list = []
        link: cython.pointer[Link] = self.head.after
        while link != cython.address(self.head):
            if references_of(link.who):  # else it is dying, and ends itself
                found.append(cython.cast(object, link.who))
            link = link.after
        return found

    # ------------------------------------------------------------ reading

    def read(self):
        """A snapshot of the newest state. It never blocks and is never blocked. O(1), no system call."""
        made: Reading = cython.cast(Reading, new_of(self._kind, NOTHING))
        gate: GateState = self.gate  # after that, since what is made may set the garbage collector going
        snapshot: Snapshot
        if gate is not None:
            snapshot = gate.newest
            if snapshot._main is not None and gate.come_in():
                if gate.count_in(snapshot):
                    self.begun(made, snapshot, snapshot._main, self._state, gate)
                    if gate._left:
                        gate._settle()
                    return made
        core = self._live()
        plain_gate = core.pager.gate
        snapshot = plain_gate.begin()
        try:
            self.begun(made, snapshot, snapshot.tree(), core, plain_gate)
        except BaseException:
            plain_gate.leave(snapshot)
            raise
        if self._state is None:  # closed by another thread since we looked, perhaps too early to see this transaction
            made.end()
            raise self._refusal()
        return made

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def begun(self, made: Reading, snapshot: Snapshot, tree: Reader, core, gate: GateState) -> cython.void:
        """A transaction has begun."""
        made.use(snapshot, tree, core)
        made._gate = gate
        made.link.who = cython.cast(cython.p_void, made)
        made.link.after = cython.address(self.head)
        made.link.before = self.head.before
        self.head.before.after = cython.address(made.link)
        self.head.before = cython.address(made.link)

    @cython.cfunc
    def entered(self) -> Snapshot:
        """The newest snapshot, used, if that can be had at once."""
        gate: GateState = self.gate
        if gate is None:
            return None
        snapshot: Snapshot = gate.newest
        if snapshot._main is None or not gate.come_in() or not gate.count_in(snapshot):
            return None
        return snapshot

    def __getitem__(self, key):
        """The value of `key` in the main tree's newest state; `KeyNotFoundError` if there is none."""
        gate: GateState = self.gate
        snapshot: Snapshot = self.entered()
        if snapshot is None:
            return PlainHandle.__getitem__(self, key)
        try:
            value = snapshot._main.get(key, NOTHING)
        finally:
            gate.end_of(snapshot)
        if value is NOTHING:
            raise KeyNotFoundError(key)
        return value

    def get(self, key, default=None):
        """The value of `key` in the main tree's newest state, or `default`."""
        gate: GateState = self.gate
        snapshot: Snapshot = self.entered()
        if snapshot is None:
            return PlainHandle.get(self, key, default)
        try:
            return snapshot._main.get(key, default)
        finally:
            gate.end_of(snapshot)

    def __contains__(self, key):
        """True if the main tree's newest state has `key`."""
        gate: GateState = self.gate
        snapshot: Snapshot = self.entered()
        if snapshot is None:
            return PlainHandle.__contains__(self, key)
        try:
            return key in snapshot._main
        finally:
            gate.end_of(snapshot)
