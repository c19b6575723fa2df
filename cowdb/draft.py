"""What one write transaction has changed, before anybody else can see it.

A `Draft` has a writer for each tree that was touched; all of them share one
`Changes`.  Sealed, it becomes a `Member` of the group that shares a flush.

The kernel has a compiled twin of it, since every write transaction makes one.

    Draft --- main, catalog, free tree, named trees: a Writer each
      |
      seal    pages numbered, checksummed and written
      |
    Member -- a state that is whole, and waits to be durable
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import TYPE_CHECKING, NoReturn

from cowdb.errors import ClosedError
from cowdb.tree import Reader
from cowdb.writer import Changes, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowdb import format as fmt
    from cowdb.locks import Turn
    from cowdb.meta import Meta
    from cowdb.space import Space

__all__ = ["Draft", "Member"]


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """A sealed transaction on its way to being durable: a member of the group that shares a flush."""

    meta: Meta
    space: Space
    written: int  # pages
    copied: int  # pages
    operations: int
    done: bool = False


class Draft:
    """What one write transaction has changed so far: a writer for each tree that it has touched."""

    def __init__(
        self,
        meta: Meta,
        space: Space,
        birth: int,
        budget: int,
        spill: Callable[[Draft], None],
        *,
        turn: Turn,
        following: int,
    ) -> None:
        """The transaction `birth` on top of `meta`; `spill` writes it early, see `Changes`, which has the `budget`.

        `turn` is that of its writer, `following` the transaction id after it.
        """
        self.meta = meta
        self.turn = turn
        self.following = following
        self.changes = Changes(birth, budget, lambda: spill(self))
        self.space = space
        self._main: Writer | None = None  # made here, or ...
        self._transaction: weakref.ref[Writer] | None = None  # ... the write transaction, which has the draft
        self._catalog: Writer | None = None
        self._free: Writer | None = None
        self.named: dict[str, Writer] = {}
        self.page_count = meta.page_count
        self.allotted = False  # numbers were given out, so an abort must take them back
        self.closed = False
        self.writing = False  # its pages are on their way to the file, so nobody may end it now
        self.handed_on = False  # sealed, and the writer lock is somebody else's by now
        self.dropped = False  # aborted because the database was closed
        self.written = 0  # pages written early
        self.flushed = True  # a flush follows, so the disk may begin with what is written early
        self.member: Member | None = None  # what it has become by its commit, until that and it have ended
        self._committed = False

    @property
    def main(self) -> Writer:
        """The main tree's writer; the write transaction puts itself here.

        It has the draft, so the draft does not have it: forgotten, it ends at once,
        and not when the garbage collector comes by.
        """
        found = self._found()
        if found is None:
            if self.closed:
                _ended()
            found = self._main = Writer(self.space, self.meta.main, self.changes)
        return found

    @main.setter
    def main(self, writer: Writer) -> None:
        self._transaction = weakref.ref(writer)

    def _found(self) -> Writer | None:
        found = self._main
        return self._transaction() if found is None and self._transaction is not None else found

    @property
    def catalog(self) -> Writer:
        """The catalog's writer, made when it is first asked for."""
        if self._catalog is None:
            if self.closed:
                _ended()
            self._catalog = Writer(self.space, self.meta.catalog, self.changes)
            self._catalog.inner = True
        return self._catalog

    @property
    def free(self) -> Writer:
        """The free tree's writer, made when it is first asked for."""
        if self._free is None:
            if self.closed:
                _ended()
            self._free = Writer(self.space, self.meta.free, self.changes)
            self._free.inner = True
        return self._free

    def writers(self) -> list[Writer]:
        """The writers of the trees that were looked at: the main one first, the catalog last, without the free tree."""
        if self.closed:
            return []
        found = [self.main, *self.named.values()]
        if self._catalog is not None:
            found.append(self._catalog)
        return found

    @property
    def committed(self) -> bool:
        """Whether it has become the state, durable unless it was lazy."""
        member = self.member
        return self._committed or (member is not None and member.done)

    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return any(writer.changed for writer in self.writers())

    def descriptors(self, seal: Callable[[Writer], fmt.Descriptor]) -> tuple[fmt.Descriptor, fmt.Descriptor]:
        """Catalog and free tree, sealed if they were touched."""
        catalog = self.meta.catalog if self._catalog is None else seal(self._catalog)
        free = self.meta.free if self._free is None else seal(self._free)
        return catalog, free

    def free_changed(self) -> bool:
        """True if the free tree was changed."""
        return self._free is not None and self._free.changed

    def move(self, space: Space) -> None:
        """Go on with a larger mapping."""
        self.space = space
        for writer in self._all():
            writer.space = space

    def _all(self) -> list[Writer]:
        return self.writers() if self._free is None else [*self.writers(), self._free]

    def named_writer(self, name: str, descriptor: fmt.Descriptor) -> Writer:
        """The writer of a named tree."""
        writer = self.named.get(name)
        if writer is None:
            writer = self.named[name] = Writer(self.space, descriptor, self.changes)
        return writer

    def stop(self) -> None:
        """See to it that nothing of it is written any more. It needs no memory."""
        main = self._found()
        if main is not None:
            Reader.close(main)  # who writes asks it first: see `Pager.spill` and `Pager.commit`

    def close(self) -> None:
        """End it: every tree of it refuses from now on. Harmless when repeated, as after an interrupt.

        It lets go of what refers back to it: so its pages' memory is there for the
        next transaction at once, not when the garbage collector comes by.
        """
        for writer in self._all():
            Reader.close(writer)  # not the main tree's own close, which ends the whole transaction
        self.closed = True
        if self.committed:
            self._committed = True
            self.member = None  # which has a mapping
        self._main = self._transaction = None
        self.space = None  # type: ignore[assignment]  # nobody looks any more, and the mapping may go
        self.changes.spill = _ended


def _ended() -> NoReturn:
    raise ClosedError("this transaction has ended already")
