"""A draft in use: the main tree that it changes, until it is committed or aborted.

    db.write() --> draft --> Writing --> commit() --> owner.commit(), owner.end()
                                    '--> abort()  --> owner.end()

It is the part of a write transaction that every `with db.write()` goes through, so
the kernel has a compiled twin of it.  What a transaction offers besides is in `transaction`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from cowdb.errors import ClosedError, Error
from cowdb.writer import BUSY, Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cowdb.draft import Draft

__all__ = ["BEING_WRITTEN", "DROPPED", "Owner", "Writing"]

BEING_WRITTEN: Final = (
    "this transaction is being written at this moment, further up in this thread or in another; end it afterwards"
)

DROPPED: Final = (
    "the database was closed in the middle of this block, and its transaction aborted: nothing of it is stored"
)


class Owner(Protocol):
    """Whose a write transaction is, and what its commit and its end mean there."""

    draft: Draft

    def pin(self) -> Callable[[], Any] | None:
        """What gives a mapping that keeps the state it was begun on alive; None: then views are of copies."""

    def commit(self) -> None:
        """Make the draft the state."""

    def end(self) -> None:
        """The end, committed or not. Harmless when repeated."""


class Writing(Writer):
    """The main tree of a draft until `commit` or `abort`; one thread at a time may use it."""

    __slots__ = ("_draft", "_owner")

    def __init__(self, owner: Owner) -> None:
        """`owner` has the draft, and is told how it ends."""
        draft = owner.draft
        Writer.__init__(self, draft.space, draft.meta.main, draft.changes)
        draft.main = self
        self._draft = draft
        self._owner: Owner | None = owner  # None once it has ended

    def commit(self) -> None:
        """Make this the state of the database. It has ended then, also if this raises.

        Under ``durability="full"`` a return means that it survives a power cut.
        Raises `FullError` (not committed), `PoisonedError` (it says what is known).
        """
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
            self._finish()
        except BaseException:
            draft.writing = False
            self._finish()  # once more, if it was the end that was interrupted
            raise

    @property
    def being_written(self) -> bool:
        """True while its pages are on their way to the file, so that nobody may end it: a signal's handler could."""
        return self._owner is not None and self._draft.writing and not self._draft.handed_on

    def abort(self) -> None:
        """Forget all changes. Harmless when it has ended already, or when it is repeated after an interrupt.

        `Error` if it is being committed just now, as when a signal's handler calls this.
        """
        if self.being_written:
            raise Error(BEING_WRITTEN)
        self._end()

    def _end(self) -> None:
        try:
            self._finish()
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        owner = None
        try:
            owner, self._owner = self._owner, None  # nobody else ends it meanwhile
            if owner is not None:
                owner.end()
        except BaseException:
            if owner is not None:
                self._owner = owner  # it was interrupted, and goes on when it is called again
            raise

    def __enter__(self) -> Self:
        """Use it as a block: it commits at the end, and aborts if the block raises.

        `ClosedError` at the end if it has changed something, and somebody has closed the database meanwhile.
        """
        self.open_space()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.abort()
            elif self._owner is not None:
                self.commit()
            elif self._draft.dropped and self.changes.operations:
                raise ClosedError(DROPPED)
        except BaseException:
            if not self.being_written:  # else the thread that writes it ends it
                self._finish()  # if it was interrupted before it began to end
            raise

    def __del__(self) -> None:
        if getattr(self, "_owner", None) is not None:
            try:
                if not self._draft.turn.over:  # else its end was interrupted
                    warnings.warn(
                        "a write transaction was forgotten; it is aborted", ResourceWarning, stacklevel=2, source=self
                    )
            finally:
                self._end()
