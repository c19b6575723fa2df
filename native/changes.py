"""What a write transaction has done so far, over all of its trees: the twin of `cowdb.writer.Changes`."""

from __future__ import annotations

from native.memory import *


@cython.final
@cython.cclass
class Changes:
    """What one write transaction has done so far; see `cowdb.writer.Changes`."""

    birth = cython.declare(u64, visibility="readonly")
    budget = cython.declare(cython.longlong, visibility="public")
    spill = cython.declare(object, visibility="public")
    freed = cython.declare(list, visibility="public")
    dirty = cython.declare(cython.longlong, visibility="public")
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

    def close(self) -> None:
        """The commit begins to give out numbers: nothing is written early any more, and only it changes anything."""
        self.budget = cython.cast(cython.longlong, 1) << 62
        self.busy = True
