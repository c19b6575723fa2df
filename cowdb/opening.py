"""From a path to an open file: what may be asked for, the file itself, made if need be, and who else is inside.

`database` puts it together; nothing here keeps anything.

    path, options --> check_options
                      open_storage ---- there is none: empty_image, under its name when it is whole
                      enter, or alone - the shared words: beside other processes, or on a disk of one's own
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from cowdb import format as fmt
from cowdb.errors import NotADatabaseError, ReadOnlyError
from cowdb.kernel import FileSharing, encode
from cowdb.meta import Meta
from cowdb.recovery import believe, refuse_stranger
from cowdb.sharing import LocalSharing
from cowdb.storage import Disk, FileDisk, Storage, create_file, refuse_no_directory

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "absolute",
    "alone",
    "check_options",
    "check_page_size",
    "check_timeout",
    "empty_image",
    "enter",
    "open_storage",
]

LEAST_PAGES: Final = 16
"""Pages of the smallest `max_size`."""


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as a str, from the root on; `TypeError` if it is no path of text."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a path is a str or a PathLike of str, not {type(name).__name__}")
    if not name:
        raise ValueError("the path is empty; name a file")
    return os.path.abspath(name)


def check_options(page_size: Any, max_size: Any, mode: Any, lock_timeout: Any) -> None:
    """Say at once what is wrong with an argument, not in the first commit that uses it."""
    check_page_size(page_size)
    for name, value in (("max_size", max_size), ("mode", mode)):
        if not isinstance(value, int) and (value is not None or name != "max_size"):
            raise TypeError(f"{name} is an int, not {type(value).__name__}")
    check_timeout("lock_timeout", lock_timeout)
    least = LEAST_PAGES * page_size
    if max_size is not None and max_size < least:
        raise ValueError(f"max_size is at least {LEAST_PAGES} pages ({least} bytes), not {max_size}")


def check_page_size(page_size: Any) -> None:
    """`TypeError` or `ValueError` if there are no pages of so many bytes."""
    if not isinstance(page_size, int):
        raise TypeError(f"page_size is an int, not {type(page_size).__name__}")
    if page_size not in fmt.PAGE_SIZES:
        raise ValueError(f"page_size is one of {', '.join(map(str, fmt.PAGE_SIZES))}, not {page_size!r}")


def check_timeout(name: str, seconds: Any) -> None:
    """`TypeError` if the argument called `name` is neither a number of seconds nor None."""
    if seconds is not None and not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} is a number of seconds or None, not {type(seconds).__name__}")


def open_storage(
    disk: Disk, path: str, *, read_only: bool, create: bool, mode: int, image: Callable[[], bytes]
) -> Storage:
    """The data file, made first if need be. `NotADatabaseError` before anything is made beside another file."""
    try:
        return _known(disk.open(path, read_only=read_only))
    except FileNotFoundError:
        if read_only or not create:
            why = "read_only=True" if read_only else "create=False"
            raise FileNotFoundError(
                errno.ENOENT, f"there is no such database, and with {why} none is made", path
            ) from None
        if isinstance(disk, FileDisk):
            refuse_no_directory(path)
    except IsADirectoryError:
        raise NotADatabaseError(path, "it is a directory; name a file inside it") from None
    except PermissionError as error:
        if not read_only and _readable(path):
            raise ReadOnlyError(
                error.errno, f"{path!r} may be read but not written: open it with read_only=True"
            ) from None
        raise
    # A link that leads to no file yet stays a link: the file is made where it leads.
    target = os.path.realpath(path) if isinstance(disk, FileDisk) and os.path.islink(path) else path
    create_file(disk, target, image(), mode)
    return disk.open(path, read_only=False)


def _known(storage: Storage) -> Storage:
    try:
        refuse_stranger(storage)
    except BaseException:
        storage.close()
        raise
    return storage


def _readable(path: str) -> bool:
    try:
        return os.access(path, os.R_OK) and stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def empty_image(page_size: int, database_id: bytes, now: int) -> bytes:
    """A new database: two meta pages of one empty, durable state."""
    meta = Meta(
        page_size=page_size,
        database_id=database_id,
        transaction=1,
        durable=1,
        page_count=fmt.META_PAGES,
        commit_time=now,
        main=fmt.EMPTY_TREE,
        catalog=fmt.EMPTY_TREE,
        free=fmt.EMPTY_TREE,
        carry=b"",
    )
    return encode(meta, 0) + encode(meta, 1)


def enter(storage: Storage, path: str, *, read_only: bool, timeout: float | None) -> FileSharing:
    """Come in to a real file, beside whoever has it open."""
    mode = stat.S_IMODE(os.stat(path).st_mode) & 0o666
    return FileSharing(path, read_only=read_only, mode=mode, timeout=timeout, make=lambda: believe(storage).meta)


def alone(storage: Storage) -> LocalSharing:
    """The words of a file that only this process can see."""
    sharing = LocalSharing()
    sharing.publish(believe(storage).meta, b"")
    return sharing
