"""What one write transaction has changed, before anybody else can see it: the twin of `cowdb.draft.Draft`."""

from __future__ import annotations

import weakref
from functools import partial

from native.changes import *
from native.memory import *
from native.sealing import *


@cython.final
@cython.cclass
class Member:
    """A sealed transaction on its way to being durable; see `cowdb.draft.Member`."""

    meta = cython.declare(object, visibility="readonly")
    space = cython.declare(object, visibility="readonly")
    written = cython.declare(cython.longlong, visibility="readonly")
    copied = cython.declare(cython.longlong, visibility="readonly")
    operations = cython.declare(cython.longlong, visibility="readonly")
    done = cython.declare(cython.bint, visibility="public")

    def __init__(
        self,
        meta,
        space,
        written: cython.longlong,
        copied: cython.longlong,
        operations: cython.longlong,
    ):
        self.meta = meta
        self.space = space
        self.written = written
        self.copied = copied
        self.operations = operations


@cython.cclass
class Draft:
    """A writer for each tree that the transaction has touched; see `cowdb.draft.Draft`."""

    meta = cython.declare(object, visibility="readonly")
    turn = cython.declare(object, visibility="readonly")
    following = cython.declare(object, visibility="readonly")
    changes = cython.declare(Changes, visibility="readonly")
    space = cython.declare(object, visibility="public")
    named = cython.declare(dict, visibility="readonly")
    page_count = cython.declare(u64, visibility="public")
    written = cython.declare(cython.longlong, visibility="public")
    flushed = cython.declare(cython.bint, visibility="public")
    allotted = cython.declare(cython.bint, visibility="public")
    closed = cython.declare(cython.bint, visibility="readonly")
    writing = cython.declare(cython.bint, visibility="public")
    handed_on = cython.declare(cython.bint, visibility="public")
    dropped = cython.declare(cython.bint, visibility="public")
    member = cython.declare(Member, visibility="public")
    _committed: cython.bint
    _main: Writer  # made here, or ...
    _transaction: object  # ... a weak reference to the write transaction, which has the draft
    _catalog: Writer
    _free: Writer

    def __init__(self, meta, space, birth: u64, budget: cython.longlong, spill, *, turn, following):
        self.meta = meta
        self.turn = turn
        self.following = following
        self.changes = Changes(birth, budget, partial(spill, self))
        self.space = space
        self.named = {}
        self.page_count = meta.page_count
        self.flushed = True

    @cython.cfunc
    def found(self) -> Writer:
        """The main tree's writer, if there is one."""
        if self._main is None and self._transaction is not None:
            return self._transaction()
        return self._main

    @cython.cfunc
    def writer(self, descriptor) -> Writer:
        """A new writer of this transaction."""
        if self.closed:
            ended()
        return Writer(self.space, descriptor, self.changes)

    @property
    def main(self):
        """The main tree's writer; the write transaction puts itself here."""
        found: Writer = self.found()
        if found is None:
            found = self._main = self.writer(self.meta.main)
        return found

    @main.setter
    def main(self, writer: Writer):
        self._transaction = weakref.ref(writer)

    @property
    def catalog(self):
        """The catalog's writer, made when it is first asked for."""
        if self._catalog is None:
            self._catalog = self.writer(self.meta.catalog)
            self._catalog.inner = True
        return self._catalog

    @property
    def free(self):
        """The free tree's writer, made when it is first asked for."""
        if self._free is None:
            self._free = self.writer(self.meta.free)
            self._free.inner = True
        return self._free

    def writers(self) -> list:
        """The writers of the trees that were looked at: the main one first, the catalog last, without the free tree."""
        if self.closed:
            return []
        found: list = [self.main]
        found.extend(self.named.values())
        if self._catalog is not None:
            found.append(self._catalog)
        return found

    def changed(self):
        """Whether there is anything to commit."""
        if self.closed:
            return False
        main: Writer = self.main
        if main.changes_made or self._catalog is not None and self._catalog.changes_made:
            return True
        return any(writer.changed for writer in self.named.values())

    @cython.cfunc
    def plain(self) -> cython.bint:
        """True if no tree but the main one was looked at."""
        return not self.named and self._catalog is None and self._free is None

    def descriptors(self, seal):
        """Catalog and free tree, sealed if they were touched."""
        catalog = self.meta.catalog if self._catalog is None else seal(self._catalog)
        free = self.meta.free if self._free is None else seal(self._free)
        return catalog, free

    def free_changed(self):
        """True if the free tree was changed."""
        return self._free is not None and self._free.changes_made > 0

    def move(self, space) -> None:
        """Go on with a larger mapping."""
        self.space = space
        for writer in self.all_writers():
            writer.space = space

    @cython.cfunc
    def all_writers(self) -> list:
        found: list = self.writers()
        if self._free is not None:
            found.append(self._free)
        return found

    def named_writer(self, name, descriptor):
        """The writer of a named tree."""
        found = self.named.get(name)
        if found is None:
            found = self.named[name] = self.writer(descriptor)
        return found

    @property
    def committed(self):
        """Whether it has become the state, durable unless it was lazy."""
        return self._committed or (self.member is not None and self.member.done)

    def stop(self) -> None:
        """See to it that nothing of it is written any more. It needs no memory."""
        main: Writer = self.found()
        if main is not None:
            main.shut()

    def close(self) -> None:
        """End it: every tree of it refuses from now on. Harmless when repeated, as after an interrupt."""
        main: Writer = self.found()
        if main is not None:
            main.shut()
        writer: Writer
        if self.named:
            for writer in self.named.values():
                writer.shut()
        if self._catalog is not None:
            self._catalog.shut()
        if self._free is not None:
            self._free.shut()
        self.closed = True
        if self.member is not None and self.member.done:
            self._committed = True
            self.member = None  # which has a mapping
        self._main = None
        self._transaction = None
        self.space = None
        self.changes.spill = ended


def ended():
    """What a draft that has ended does instead of writing early."""
    raise ClosedError("this transaction has ended already")
