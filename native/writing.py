"""A draft in use: the twin of `cowdb.writing`."""

from __future__ import annotations

import warnings

from cowdb.writing import BEING_WRITTEN, DROPPED
from native.draft import *
from native.sealing import *


@cython.cclass
class Writing(Writer):
    """The main tree of a draft until `commit` or `abort`; see `cowdb.writing.Writing`."""

    _draft = cython.declare(Draft, visibility="readonly")
    _owner = cython.declare(object, visibility="public")  # None once it has ended

    def __init__(self, owner):
        draft: Draft = owner.draft
        self.change(draft.space, draft.meta.main, draft.changes)
        draft.main = self
        self._draft = draft
        self._owner = owner

    def commit(self) -> None:
        """Make this the state of the database. It has ended then, also if this raises."""
        owner = self._owner
        if owner is None:
            raise ClosedError("this transaction has ended already")
        draft = self._draft
        if draft.writing:
            raise Error(BEING_WRITTEN)
        if draft.changes.busy:
            raise Error(BUSY)
        try:
            draft.writing = True
            owner.commit()
            self.finish()
        except BaseException:
            draft.writing = False
            self.finish()  # once more, if it was the end that was interrupted
            raise

    @property
    def being_written(self):
        """True while its pages are on their way to the file, so that nobody may end it: a signal's handler could."""
        return self._owner is not None and self._draft.writing and not self._draft.handed_on

    def abort(self) -> None:
        """Forget all changes. Harmless when it has ended already, or when it is repeated after an interrupt."""
        if self.being_written:
            raise Error(BEING_WRITTEN)
        self.end()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def end(self) -> cython.int:
        try:
            self.finish()
        except BaseException:
            self.finish()
            raise
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def finish(self) -> cython.int:
        owner: object
        with cython.critical_section(self):  # nobody else ends it meanwhile
            owner = self._owner
            self._owner = None
        if owner is not None:
            try:
                owner.end()
            except BaseException:
                self._owner = owner  # it was interrupted, and goes on when it is called again
                raise
        return 0

    def __enter__(self):
        """Use it as a block: it commits at the end, and aborts if the block raises."""
        self.opened()
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is not None:
                self.abort()
            elif self._owner is not None:
                self.commit()
            elif self._draft.dropped and self._draft.changes.operations:
                raise ClosedError(DROPPED)
        except BaseException:
            if not self.being_written:  # else the thread that writes it ends it
                self.finish()  # if it was interrupted before it began to end
            raise

    def __del__(self):
        if self._owner is not None:
            try:
                if not self._draft.turn.over:  # else its end was interrupted
                    warnings.warn(
                        "a write transaction was forgotten; it is aborted", ResourceWarning, stacklevel=1, source=self
                    )
            finally:
                self.end()
