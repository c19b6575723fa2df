"""Why writing has stopped: after a failed write or flush nothing is tried again.

A file system that could not write a page back may drop it and call the next
flush a success (PostgreSQL learned that in 2018, after twenty years).  So after
such a failure nobody knows what is on the disk, and asking again would only be
answered by a lie.  The writer is poisoned: reading goes on with the last
published state, `write()` raises, and opening the file again finds out what is
there.

    before the meta page is written     not committed
    from then on                        unknown until the file is opened again
    no room, found in time              not committed, and not poisoned: room may come
"""

from __future__ import annotations

import errno
from typing import Final, NoReturn

from cowdb.errors import FullError, PoisonedError

__all__ = ["NOTHING_LOST", "NOT_COMMITTED", "NO_ROOM", "UNKNOWN", "Poison"]

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that pass when somebody makes room."""

NOT_COMMITTED: Final = "the transaction was not committed"
UNKNOWN: Final = "whether the newest transaction holds is unknown until the database is closed and opened again"
NOTHING_LOST: Final = "every transaction was durable before, nothing is lost"
_IN_THE_MIDDLE: Final = "it failed in the middle of a commit"
"""What is said where there is no memory to say it better."""


class Poison:
    """Whether this process may go on writing; `reason` is None as long as it may."""

    __slots__ = ("reason",)

    def __init__(self) -> None:
        self.reason: str | None = None

    def refuse(self) -> None:
        """Raise `PoisonedError` if writing has stopped."""
        if self.reason is not None:
            raise PoisonedError(
                errno.EIO, f"writing has stopped because {self.reason}; close the database and open it again"
            )

    def refuse_member(self) -> None:
        """The same for a transaction that waits in a group whose flush has failed."""
        if self.reason is not None:
            raise PoisonedError(
                errno.EIO, f"{self.reason}, in the group of this transaction; {UNKNOWN}; writing has stopped"
            )

    def interrupted(self, error: BaseException) -> None:
        """A commit ended in the middle, whatever by: what the file holds is not known."""
        if self.reason is None:
            self.reason = _IN_THE_MIDDLE  # first, and without asking for memory
            self.reason = f"a commit was interrupted ({error!r})"

    def not_committed(self, what: str, error: OSError) -> NoReturn:
        """A failure before the meta page is written: nothing is lost. Lack of room passes; anything else poisons."""
        if error.errno in NO_ROOM:
            raise FullError(
                error.errno,
                f"no room for {what} ({error.strerror}); the transaction was not committed, nothing is lost",
            ) from error
        self.fail(what, error)

    def fail(self, what: str, error: BaseException, state: str = NOT_COMMITTED) -> NoReturn:
        """Poison the writer and say so. BUSY stays set (P2)."""
        self.reason = _IN_THE_MIDDLE  # first, and without asking for memory
        self.reason = f"{what} failed ({error if str(error) else repr(error)})"
        if isinstance(error, OSError):
            raise PoisonedError(error.errno, f"{self.reason}; {state}; reading goes on, writing has stopped") from error
        raise error
