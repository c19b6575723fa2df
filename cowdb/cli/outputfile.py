"""The file that `dump` or `report` writes: new, or in the place of what the same command wrote before.

    OUTPUT is not there       it appears when it is whole and on disk
    OUTPUT is an earlier one  --force replaces it, in the same way
    OUTPUT is anything else   it stays as it is: a database, also a damaged one, looks like anything

What is an earlier output is known by its first bytes.  An empty file has nothing to lose.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

from cowdb.cli.output import IO_ERROR, USAGE, CommandError
from cowdb.storage import FileDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["OutputFile"]


class OutputFile:
    """The file at `path`. `what` is what the command writes, each of which begins with one of `beginnings`."""

    def __init__(self, path: str, what: str, beginnings: tuple[bytes, ...], *, force: bool) -> None:
        self._path = path
        self._what = what
        self._beginnings = beginnings
        self._force = force

    def refuse(self) -> None:
        """A `CommandError` if nothing may be written there."""
        path = self._path
        if not os.path.basename(path):
            raise CommandError(f"{path!r} names no file to write", USAGE)
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise CommandError(f"there is no directory {folder!r}", IO_ERROR)
        if not os.path.lexists(path):
            return
        if not os.path.isfile(path):
            raise CommandError(f"{path!r} is no file, so it cannot be replaced", USAGE)
        if not self._is_earlier():
            raise CommandError(
                f"{path!r} does not begin like a {self._what}, so it stays as it is, also with --force: "
                "remove it yourself, or name another file",
                USAGE,
            )
        if not self._force:
            raise CommandError(f"{path!r} is there already; --force replaces it", USAGE)

    def _is_earlier(self) -> bool:
        """Whether an earlier output is there, or an empty file."""
        with open(self._path, "rb") as file:
            head = file.read(max(map(len, self._beginnings)))
        return not head or head.startswith(self._beginnings)

    @contextlib.contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """A file to write to; it gets its name when the block has ended and it is on disk, or leaves no trace."""
        disk = FileDisk()
        target = os.path.abspath(self._path)
        descriptor, name = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if self._force:
                self.refuse()  # it may be another file by now
                os.replace(name, target)
            else:
                try:
                    disk.link(name, target)
                except FileExistsError:
                    raise CommandError(f"{self._path!r} has come meanwhile; it stays as it is", USAGE) from None
        finally:
            with contextlib.suppress(FileNotFoundError):  # it has its own name, and where links are missing no other
                os.unlink(name)
        disk.flush_directory(target)
