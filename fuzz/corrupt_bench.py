"""A disk of one file that can be damaged and made whole again in microseconds.

The file lies in memory; each mapping of it is a window on the same pages, as with a
real file: opening it copies nothing.  Whatever is stored, by the case or by the
engine, is noted, and `restore` puts back only that.

    patch --> area <-- write of the engine        mappings: windows on the area
                |              |
                +---- notes of what was touched --> restore
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from typing import TYPE_CHECKING, Final

from cowdb.core import cores
from cowdb.testing import POISON
from fuzz.corrupt_victim import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowdb.storage import Buffer

__all__ = ["Bench"]

_LARGEST: Final = 16 << 20
"""The disk is full behind this: no forged number may fill the memory of the harness itself."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number), PATH)


class Bench:
    """The disk; see the module's text. One file at `PATH`, in this process alone."""

    def __init__(self, whole: bytes) -> None:
        self.whole: Final = whole
        self._file = _file_in_memory()
        os.truncate(self._file, len(whole))
        self.area = mmap.mmap(self._file, len(whole))
        """The bytes of the file, and perhaps some behind them."""
        self.area[:] = whole
        self._touched: list[tuple[int, int]] = []
        self._size = len(whole)
        self._names = {PATH}

    # ------------------------------------------------------------ damage

    def patch(self, offset: int, raw: bytes) -> None:
        """Put bytes into the file; what would lie beyond its end is left out."""
        length = len(raw)
        if offset + length > self._size:
            raw = raw[: max(0, self._size - offset)]
            length = len(raw)
        if length:
            self._touched.append((offset, length))
            self.area[offset : offset + length] = raw

    def cut(self, size: int) -> None:
        """The file ends here. Behind it lies poison; with a real file, reading there would be a signal."""
        size = min(size, self._size)
        gone = self._size - size
        self._touched.append((size, gone))
        self.area[size : self._size] = bytes([POISON]) * gone
        self._size = size

    def content(self) -> bytes:
        """What the file holds."""
        return self.area[: self._size]

    def restore(self) -> None:
        """Make the file what it was at first."""
        area, whole = self.area, self.whole
        limit = len(whole)
        for offset, length in self._touched:
            end = min(offset + length, limit)
            if offset < end:
                area[offset:end] = whole[offset:end]
        self._touched.clear()
        self._size = limit
        for key in [key for key in cores if key[0] == id(self)]:
            del cores[key]

    # ------------------------------------------------------------ cowdb.storage.Disk

    def open(self, path: str, *, read_only: bool) -> BenchStorage:
        """See `cowdb.storage.Disk`."""
        if path not in self._names:
            raise _error(errno.ENOENT)
        return BenchStorage(self, read_only=read_only)

    def create(self, path: str, mode: int) -> BenchStorage:  # noqa: ARG002 - nothing is ever created here
        """See `cowdb.storage.Disk`."""
        raise _error(errno.EROFS)

    def link(self, source: str, target: str) -> None:  # noqa: ARG002 - as above
        """See `cowdb.storage.Disk`."""
        raise _error(errno.EROFS)

    def remove(self, path: str) -> None:  # noqa: ARG002 - as above
        """See `cowdb.storage.Disk`."""
        raise _error(errno.EROFS)

    def flush_directory(self, path: str) -> None:
        """See `cowdb.storage.Disk`."""

    # ------------------------------------------------------------ what the storage does

    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """See `cowdb.storage.Storage`."""
        if offset < 0 or length < 0:
            raise _error(errno.EINVAL)
        return self.area[offset : min(offset + length, self._size)]

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `cowdb.storage.Storage`."""
        raw = b"".join(buffers)
        if offset < 0:
            raise _error(errno.EINVAL)
        if offset + len(raw) > self._size:
            self.resize(offset + len(raw))
        self.patch(offset, raw)

    def resize(self, size: int) -> None:
        """See `cowdb.storage.Storage`."""
        if size > _LARGEST:
            raise _error(errno.ENOSPC)
        if size < self._size:
            self.cut(size)
            return
        old = self._size
        if size > len(self.area):
            os.truncate(self._file, size)
            self.area = mmap.mmap(self._file, size)
        self._size = size
        self.area[old:size] = bytes(size - old)
        self._touched.append((old, size - old))

    def map(self, length: int) -> mmap.mmap:
        """See `cowdb.storage.Storage`."""
        if length <= 0 or length > self._size:
            raise ValueError(f"cannot map {length} bytes of a file of {self._size}")
        return mmap.mmap(self._file, length)


def _file_in_memory() -> int:
    """A descriptor of an empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("cowdb-fuzz")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class BenchStorage:
    """The open file of a `Bench`."""

    path: Final = PATH

    def __init__(self, bench: Bench, *, read_only: bool) -> None:
        self._bench = bench
        self.read_only: Final = read_only
        self.size = bench.size
        self.read = bench.read
        self.map = bench.map

    def _writable(self) -> Bench:
        if self.read_only:
            raise _error(errno.EBADF)
        return self._bench

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `cowdb.storage.Storage`."""
        self._writable().write(offset, buffers)

    def resize(self, size: int) -> None:
        """See `cowdb.storage.Storage`."""
        self._writable().resize(size)

    def reserve(self, offset: int, length: int) -> None:
        """See `cowdb.storage.Storage`."""
        if offset < 0 or length <= 0:
            raise _error(errno.EINVAL)
        bench = self._writable()
        if offset + length > bench.size():
            bench.resize(offset + length)

    def flush(self) -> None:
        """See `cowdb.storage.Storage`."""
        self._writable()

    def flush_name(self) -> None:
        """See `cowdb.storage.Storage`."""

    def close(self) -> None:
        """See `cowdb.storage.Storage`."""

    def identity(self) -> tuple[int, int]:
        """See `cowdb.storage.Storage`."""
        return 0, 1

    def is_current(self) -> bool:
        """See `cowdb.storage.Storage`."""
        return True
