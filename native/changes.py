"""What a write transaction has done so far, over all of its trees: the twin of `cowdb.writer.Changes`."""

from __future__ import annotations

from native.memory import *

from cowdb.writer import EARLY


@cython.final
@cython.cclass
class Changes:
    """What one write transaction has done so far; see `cowdb.writer.Changes`."""

    birth = cython.declare(u64, visibility="readonly")
    budget = cython.declare(cython.longlong, visibility="public")
    spill = cython.declare(object, visibility="public")
    freed = cython.declare(list, visibility="public")
    dirty = cython.declare(cython.longlong, visibility="public")
    early = cython.declare(cython.longlong, visibility="public")
    ended = cython.declare(cython.longlong, visibility="public")
    due = cython.declare(cython.bint, visibility="public")
    foreign: cython.Py_ssize_t
    copied = cython.declare(cython.longlong, visibility="public")
    operations = cython.declare(cython.longlong, visibility="public")
    inserted = cython.declare(cython.bint, visibility="public")
    torn = cython.declare(cython.bint, visibility="public")
    busy = cython.declare(cython.bint, visibility="public")

    def __init__(self, birth: u64, budget: cython.longlong, spill):
        self.birth = birth
        self.budget = budget
        self.spill = spill
        self.freed = []
        self.early = EARLY

    @cython.cfunc
    @cython.exceptval(check=False)
    def end(self, size: cython.longlong) -> cython.void:
        """`size` bytes that are dirty have come to their end: nothing but a change of mind changes them again."""
        self.ended += size
        if self.ended >= self.early and 16 * (self.dirty - self.ended) <= self.ended:
            self.due = True

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def full(self) -> cython.bint:
        """Whether it is time to write early."""
        return self.due or self.dirty > self.budget

    def written(self) -> None:
        """All that was dirty is in the file."""
        self.dirty = 0
        self.ended = 0
        self.due = False

    @cython.cfunc
    @cython.exceptval(check=False)
    def less(self, size: cython.longlong) -> cython.void:
        """`size` dirty bytes are needed no more."""
        self.dirty -= size
        self.ended = min(self.ended, self.dirty)

    def take_own(self) -> list:
        """The freed runs that this transaction itself has written, out of the list. O(runs since the last time)."""
        new: list = self.freed[self.foreign :]
        own: list = []
        others: list = []
        for run in new:
            (own if run[2] == self.birth else others).append(run)
        if own:
            self.freed[self.foreign :] = others
        self.foreign = PyList_GET_SIZE(self.freed)
        return own

    def close(self) -> None:
        """The commit begins to give out numbers: nothing is written early any more, and only it changes anything."""
        self.budget = cython.cast(cython.longlong, 1) << 62
        self.early = self.budget
        self.due = False
        self.busy = True
