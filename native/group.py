"""Who is sealed and not durable yet: the twin of `cowdb.group.Group`, as far as nobody is.

That is the usual case for a thread that commits alone, and for lazy commits.  What is done here lets no other thread
in, so it takes no lock; it only looks that nobody has it.  An interpreter without a lock of its own uses the plain
form.
"""

from __future__ import annotations

from native.locks import *
from native.memory import *

from cowdb.group import Group as PlainGroup
from cowdb.locks import me


@cython.cclass
class GroupState:
    """What the plain form keeps, where C finds it, and the calls that every transaction makes."""

    pending = cython.declare(list, visibility="public")
    in_flight = cython.declare(list, visibility="public")
    _mutex = cython.declare(object, visibility="public")
    _asleep = cython.declare(object, visibility="public")
    _leader = cython.declare(object, visibility="public")
    _frame = cython.declare(object, visibility="public")
    _called = cython.declare(object, visibility="public")
    _door: Door

    def add(self, member) -> None:
        """One more is sealed. The caller holds the writer lock."""
        if self._door.held:
            PlainGroup.add(self, member)
        else:
            self.pending.append(member)

    def newest(self):
        """The newest that is sealed and not durable yet: what the next transaction builds on."""
        if self._door.held:
            return PlainGroup.newest(self)
        tip: list = self.pending or self.in_flight
        return tip[-1] if tip else None

    def transactions(self):
        """The transactions that are sealed and not durable yet. They count as live (P6)."""
        if self._door.held or self.pending or self.in_flight:
            return PlainGroup.transactions(self)
        return []

    def idle(self):
        """Whether nobody is on his way any more."""
        if self.pending:
            return PlainGroup.idle(self)
        return not self.in_flight

    def clear_up(self) -> None:
        """If who led a flush was interrupted and left it, tell its members how it went."""
        if self.in_flight or self._door.held:
            PlainGroup.clear_up(self)

    def tidy(self) -> None:
        """Let who waits for a flush go on that has come to its end, however it did."""
        group: list = self.in_flight
        nobody: list = []  # made now: memory that is asked for may set the garbage collector going
        well: cython.bint = len(group) == 1 and self._leader is me() and self._frame is None
        if well:
            well = self._poison.reason is None and self._gate.latest.meta.transaction >= group[0].meta.transaction
        # From here on nobody else comes in between.
        if not well or self._door.held or self.in_flight is not group or self.pending or self._asleep:
            PlainGroup.tidy(self)
            return
        group[0].done = True
        self.in_flight = nobody
        self._leader = self._called = None

    def drain(self, publish) -> None:
        """Have everything that is sealed durable and published, and no flush in flight."""
        if self._door.held or self.pending or self.in_flight:
            PlainGroup.drain(self, publish)


class Group(GroupState, PlainGroup):
    """Who is sealed and not durable yet, of one process; see `cowdb.group.Group`."""

    def __init__(self, gate, poison):
        PlainGroup.__init__(self, gate, poison)
        hang_group(self)


@cython.cfunc
@cython.exceptval(-1, check=False)
def hang_group(group: GroupState) -> cython.int:
    """Put a door in the place of the plain mutex, before anybody knows the group."""
    group._door = group._mutex = Door(group._mutex)
    return 0
