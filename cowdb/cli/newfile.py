"""A new database file that appears under its name when it is whole and on disk, or not at all.

    app.new.1f2e....tmp --> filled, closed, flushed --> link to app.new --> directory flushed

A command that is killed in the middle leaves a file that ends in ``.tmp`` and can be removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from cowdb import format as fmt
from cowdb.cli.output import IO_ERROR, USAGE, CommandError
from cowdb.storage import FileDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.database import Database
    from cowdb.storage import FileStorage

__all__ = ["appearing", "new_database", "new_storage", "refuse_existing"]


def refuse_existing(path: str) -> None:
    """Raise a `CommandError` if there is something at `path`: nothing here overwrites a file."""
    if os.path.lexists(path):
        raise CommandError(f"{path!r} exists already; name a new file", USAGE)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise CommandError(f"there is no directory {folder!r}", IO_ERROR)


@contextlib.contextmanager
def appearing(path: str) -> Iterator[str]:
    """A temporary name for the file that shall be at `path`; it gets its name if the block succeeds."""
    refuse_existing(path)
    disk = FileDisk()
    target = os.path.abspath(path)
    temporary = f"{target}.{secrets.token_hex(6)}.tmp"
    try:
        yield temporary
        try:
            disk.link(temporary, target)
        except FileExistsError:
            raise CommandError(f"{path!r} was made by somebody else meanwhile", USAGE) from None
    finally:
        for leftover in (temporary, temporary + "-lock"):
            with contextlib.suppress(FileNotFoundError):  # where links are missing, the temporary name was renamed
                disk.remove(leftover)
    disk.flush_directory(target)


@contextlib.contextmanager
def new_storage(path: str) -> Iterator[FileStorage]:
    """The bytes of a new file, flushed at the end."""
    with appearing(path) as temporary:
        storage = FileDisk().create(temporary, 0o600)
        try:
            yield storage
            storage.flush()
        finally:
            storage.close()


@contextlib.contextmanager
def new_database(path: str, page_size: int, database_id: bytes | None = None) -> Iterator[Database]:
    """A new database; it is closed, cut to what it uses, and flushed at the end."""
    from cowdb.database import open_on  # noqa: PLC0415 - only commands that write need it
    from cowdb.inspection import slots  # noqa: PLC0415

    disk = FileDisk()
    with appearing(path) as temporary:
        with open_on(disk, temporary, page_size=page_size, durability="lazy", database_id=database_id) as db:
            yield db
            db.sync()
        storage = disk.open(temporary, read_only=False)
        try:
            pages = max(slot.meta.page_count if slot.meta else fmt.META_PAGES for slot in slots(storage))
            if storage.size() > pages * page_size:
                storage.resize(pages * page_size)  # a copy keeps no room to grow
            storage.flush()
        finally:
            storage.close()
