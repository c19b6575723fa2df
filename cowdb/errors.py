"""Every error that cowdb raises, grouped by the moment it appears.

Each class derives from `Error` and, where a built-in exception says the same
thing, from that built-in too, so that a caller may catch either.  Errors carry
their data as attributes, and pickle: the constructor's arguments are kept in
``args`` and the sentence is made from them.

    opening     NotADatabaseError, VersionError, LockTimeoutError
    arguments   KeyNotFoundError, KeySizeError, ReadOnlyError
    lifetime    ClosedError, ForkedError
    the disk    FullError, CorruptionError, PoisonedError
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "CorruptionError",
    "Error",
    "ForkedError",
    "FullError",
    "KeyNotFoundError",
    "KeySizeError",
    "LockTimeoutError",
    "NotADatabaseError",
    "PoisonedError",
    "ReadOnlyError",
    "VersionError",
]


class Error(Exception):
    """Base of all errors that cowdb raises on purpose."""


# ---------------------------------------------------------------- opening


class NotADatabaseError(Error, ValueError):
    """The file is not a cowdb database, or nothing of it can be recognised."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path!r} is not a cowdb database: {self.reason}"


class VersionError(Error, ValueError):
    """The file was written in a format that this cowdb does not know."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path!r} needs a newer cowdb: {self.reason}"


class LockTimeoutError(Error, TimeoutError):
    """A lock was not free in time.

    `holder` is the process id of the one who has it, where that is known.
    """

    def __init__(self, what: str, timeout: float, holder: int | None = None) -> None:
        super().__init__(what, timeout, holder)
        self.errno = self.strerror = self.filename = None  # `OSError` took the arguments for its own
        self.args = (what, timeout, holder)
        self.what = what
        self.timeout = timeout
        self.holder = holder

    def __str__(self) -> str:
        held = f"; process {self.holder} holds it" if self.holder else ""
        return f"{self.what} was not free within {round(self.timeout, 3):g} s{held}"


# ---------------------------------------------------------------- arguments


class KeyNotFoundError(Error, KeyError):
    """There is no such key, or no tree of that name: then `kind` is ``"tree"``."""

    def __init__(self, key: object, kind: str = "") -> None:
        super().__init__(*((key, kind) if kind else (key,)))
        self.key = key
        self.kind = kind

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.key!r}" if self.kind else repr(self.key)


class KeySizeError(Error, ValueError):
    """A key is longer than the page size allows (see `Database.max_key_size`)."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"key of {self.size} bytes is too long: the limit is {self.limit} bytes at this "
            "page size; store long data in the value, or choose a larger page_size for a new file"
        )


class ReadOnlyError(Error, OSError):
    """A change was asked of something that was opened for reading."""


# ---------------------------------------------------------------- lifetime


class ClosedError(Error, ValueError):
    """The database, transaction, tree or cursor has ended."""


class ForkedError(Error, RuntimeError):
    """A transaction was carried over a fork into a child process."""


# ---------------------------------------------------------------- the disk


class FullError(Error, OSError):
    """No room: the disk, the quota or `max_size` is used up.

    The transaction was not committed and nothing is lost.  Deleting still
    works; so does everything else as soon as there is room.
    """


class CorruptionError(Error, OSError):
    """A page is not what the reference to it says.

    `page_number` names the page, or is -1 if the damage is not in one page.
    """

    def __init__(self, page_number: int, reason: str) -> None:
        super().__init__(page_number, reason)
        self.errno = self.strerror = None  # `OSError` took the page for an error number
        self.page_number = page_number
        self.reason = reason

    def __str__(self) -> str:
        where = f"page {self.page_number}: " if self.page_number >= 0 else ""
        return f"the file is damaged: {where}{self.reason}"


class PoisonedError(Error, OSError):
    """An earlier write or flush failed; close the database and open it again."""
