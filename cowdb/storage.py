"""The data file: the only door between the engine and a disk.

The engine asks for very little of a disk, and asks it here: read a few bytes,
write some buffers, change the size, flush, map.  Everything goes through two
small protocols, so that a fake disk (`cowdb.testing`) can stand in for the real
one and a crash becomes a unit test; and because no mapping is writable, the
list of `write` calls is the complete list of stores.

The compiled kernel writes the pages of a commit to a `FileStorage` by itself, in the
same order, but for values of many pages; to any other storage it does not.

    engine --> Disk -----> open, create, link, remove, flush_directory
                 |
                 +-------> Storage --> write() --> page cache ===> Mapping
                                       flush() --> the medium      (live, read-only)

A byte that was written is seen at once by every mapping and every process, but
it survives a power cut only after a `flush` that began after the write.  What a
disk may do in between is the crash model, see `docs/crash-model.md`.

Errors of the operating system pass through as they are (`OSError`); what they
mean for a transaction is for the engine to say.  Closed storages, and changes
through a storage that was opened read-only, give `OSError` with ``EBADF``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import stat
import sys
import warnings
from typing import TYPE_CHECKING, Final, Protocol

from cowdb import linux

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Disk",
    "FileDisk",
    "FileStorage",
    "Mapping",
    "Storage",
    "begin_writing",
    "create_file",
    "leads_to",
    "size_of",
]

GATHERED: Final = 32 * 1024
"""Bytes of small buffers that are written in one call: Linux keeps what is first written together as one folio of its
cache, and looks through all of a folio whenever a page of it is written again and flushed."""

WRITE_LIMIT: Final = 256 * 1024
"""Bytes of one write call at most, for the same reason; a large value is mostly freed as a whole."""

SOON: Final = 4 << 20
"""Bytes after which the disk is asked to begin with them: it works while the rest is computed and written."""

READ_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of one read call at most; systems cut a call short at about 2 GiB, and a wild length must not be allocated."""

UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
"""What a file system answers to a call that it does not know."""

HARMLESS: Final = UNSUPPORTED | {errno.EPERM, errno.ESPIPE, errno.EBADF, errno.EINTR, errno.EAGAIN, errno.ENOMEM}
"""After these nothing was begun with, and nothing is lost: the flush does it."""

PLAIN_BUFFERS: Final[set[type]] = {bytes, bytearray}
"""Kinds of buffers whose length is their number of bytes. The compiled kernel adds its own when it is imported."""

_BLOCK: Final = 4096
"""A call ends with a block of the file: part of one would have to be read from the disk first."""

_TEMPORARY_NAMES: Final = 10_000


def _iov_max() -> int:
    try:
        limit = os.sysconf("SC_IOV_MAX")
    except (AttributeError, ValueError, OSError):
        return 16  # what POSIX promises at least
    return limit if limit > 0 else 16


IOV_MAX: Final = _iov_max()
"""Buffers of one write call at most."""

Buffer = bytes | bytearray | memoryview


# ---------------------------------------------------------------- protocols


class Mapping(Protocol):
    """Read-only, live bytes of the file: what any process writes shows here at once.

    Slices give `bytes`; ``memoryview(mapping)`` gives the bytes without a copy
    and keeps the mapping alive.  Bytes past the end of a file that was cut must
    not be touched: on a real file that kills the process (SIGBUS).
    """

    def __len__(self) -> int:
        """Bytes that were mapped."""

    def __getitem__(self, where: slice, /) -> bytes:
        """A copy of the bytes of a slice."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """The bytes themselves, for ``memoryview(mapping)``."""


class Storage(Protocol):
    """One open data file."""

    @property
    def path(self) -> str:
        """The absolute path that it was opened by."""

    @property
    def read_only(self) -> bool:
        """Whether it refuses changes."""

    def size(self) -> int:
        """The size of the file in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`: `length` of them, or fewer at the end of the file."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers, one after the other, from `offset`; the file grows if it has to.

        If it raises, any part may have been written.
        """

    def resize(self, size: int) -> None:
        """Cut the file, or let it grow by a hole that reads as zeros."""

    def reserve(self, offset: int, length: int) -> None:
        """Have real blocks behind these bytes, so that a later write cannot find the disk full.

        The file is at least ``offset + length`` bytes long afterwards; what it
        holds does not change.  Where the file system cannot reserve, only the
        size is seen to.
        """

    def flush(self) -> None:
        """Return when all that was written before the call survives a power cut.

        If it raises, each byte written since the last good flush may be on disk
        or not, for good; calling again proves nothing.
        """

    def flush_name(self) -> None:
        """Return when the name of the file survives a power cut."""

    def map(self, length: int) -> Mapping:
        """Map the first `length` bytes, a multiple of the page size.

        Raises `ValueError` if it is not positive or the file is shorter.
        """

    def close(self) -> None:
        """Let go of the file; mappings stay valid.  Closing twice is allowed."""

    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two storages of the same file, whatever their paths."""

    def is_current(self) -> bool:
        """Whether `path` still leads to this file (it may have been renamed, removed, replaced)."""


class Disk(Protocol):
    """A file system: where data files are created, found and opened."""

    def open(self, path: str, *, read_only: bool) -> Storage:
        """Open an existing file.  Raises `FileNotFoundError`."""

    def create(self, path: str, mode: int) -> Storage:
        """Create an empty file, readable and writable.  Raises `FileExistsError`."""

    def link(self, source: str, target: str) -> None:
        """Let `target` name the file that `source` names, in one step.

        Raises `FileExistsError` if there is a `target`, which stays as it is.
        On file systems without hard links `source` may be gone afterwards.
        """

    def remove(self, path: str) -> None:
        """Remove the name; the file lives on while it has another name or is open.  Raises `FileNotFoundError`."""

    def flush_directory(self, path: str) -> None:
        """Return when the names in the directory that holds `path` survive a power cut."""


# ---------------------------------------------------------------- the real disk


class FileStorage:
    """A file of the operating system.

    It owns its descriptor.  Calls may come from many threads,
    except that nobody else may be inside while one closes.
    """

    _fd = -1

    def __init__(self, path: str, flags: int, mode: int, *, read_only: bool) -> None:
        """Open `path` as `os.open` does. Whatever comes in between, no descriptor stays behind."""
        self.path: Final = path
        self.read_only: Final = read_only
        self._fd = os.open(path, flags, mode)
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
                raise OSError(number, os.strerror(number), path)
            self._identity: Final = found.st_dev, found.st_ino
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        kind = "closed" if self._fd < 0 else "read-only" if self.read_only else "open"
        return f"<{type(self).__name__} {self.path!r} {kind}>"

    def __del__(self) -> None:
        if self._fd >= 0:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:
                self.close()

    def size(self) -> int:
        """The size of the file in bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)  # no call here uses the position; `fstat` answers much more

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`: `length` of them, or fewer at the end of the file. O(length)."""
        data = os.pread(self._fd, min(length, READ_LIMIT), offset)
        if len(data) == length or not data:
            return data
        pieces = [data]
        done = len(data)
        while data and done < length:  # a long read, the file's end, or a short count: only an empty answer is the end
            data = os.pread(self._fd, min(length - done, READ_LIMIT), offset + done)
            pieces.append(data)
            done += len(data)
        return b"".join(pieces)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers, one after the other, from `offset`. O(bytes).

        It makes as many calls as it takes; interrupted calls are repeated by
        Python itself, unless a signal handler raises.
        """
        if self.read_only or self._fd < 0:
            self._require_writable()
        if offset < 0:  # to glibc's pwritev, -1 means the file's current position
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path)
        if len(buffers) == 1 and type(buffers[0]) in PLAIN_BUFFERS:
            length = len(buffers[0])
            if 0 < length <= WRITE_LIMIT:
                done = _write_some(self, buffers, offset)
                if done == length:  # one page: the usual case, and no more to do
                    return
                offset += done
                buffers = [memoryview(buffers[0])[done:]]
        batch: list[Buffer] = []
        size = 0  # of the batch in bytes
        for buffer in buffers:
            if type(buffer) in PLAIN_BUFFERS:
                length = len(buffer)
            else:
                buffer = memoryview(buffer)  # noqa: PLW2901 - what it shows
                length = buffer.nbytes
                if buffer.format != "B" or buffer.ndim != 1 or not buffer.c_contiguous:
                    buffer = buffer.cast("B")  # noqa: PLW2901 - refuses what has gaps, with a TypeError
            if length == 0:
                continue
            if (size + length > GATHERED and size % _BLOCK == 0) or len(batch) == IOV_MAX:
                self._write_batch(offset, batch, size)
                offset += size
                batch = []
                size = 0
            while size + length > WRITE_LIMIT:
                buffer = memoryview(buffer)  # noqa: PLW2901
                room = WRITE_LIMIT - size
                self._write_batch(offset, [*batch, buffer[:room]], WRITE_LIMIT)
                offset += WRITE_LIMIT
                buffer = buffer[room:]  # noqa: PLW2901
                length -= room
                batch = []
                size = 0
            batch.append(buffer)
            size += length
        self._write_batch(offset, batch, size)

    def begin_writing(self, start: int) -> None:
        """Ask the disk to begin with what was written from byte `start` on; see the function of that name."""
        error = linux.sync_file_range(self._fd, start)
        if error and error not in HARMLESS:
            raise OSError(error, os.strerror(error), self.path)

    def resize(self, size: int) -> None:
        """Cut the file, or let it grow by a hole that reads as zeros. O(1) for growth."""
        self._require_writable()
        os.ftruncate(self._fd, size)

    def reserve(self, offset: int, length: int) -> None:
        """Have real blocks behind these bytes; a full disk raises ``ENOSPC`` here and not later."""
        self._require_writable()
        if offset < 0 or length <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.path)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._fd, offset, length)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        if self.size() < offset + length:
            os.ftruncate(self._fd, offset + length)

    def flush(self) -> None:
        """Return when all that was written before the call survives a power cut."""
        self._require_writable()
        try:
            _flush_data(self)
        except ValueError:  # Python's, of the descriptor of a storage that was closed in this very moment
            self._require_open()
            raise

    def flush_name(self) -> None:
        """Return when the name of the file survives a power cut, where the user may see to that."""
        with contextlib.suppress(PermissionError):  # who may not read a directory cannot flush it
            FileDisk().flush_directory(os.path.realpath(self.path))

    def map(self, length: int) -> mmap.mmap:
        """Map the first `length` bytes for reading."""
        if length <= 0:
            raise ValueError(f"cannot map {length} bytes")
        if self._fd < 0:  # mmap would take it for a wish for anonymous memory, full of zeros
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return mmap.mmap(self._fd, length, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Let go of the file; mappings stay valid, as they hold the file by themselves."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def identity(self) -> tuple[int, int]:
        """Device and inode of the open file."""
        self._require_open()
        return self._identity

    def is_current(self) -> bool:
        """Whether `path` still leads to this file. One system call."""
        self._require_open()
        return leads_to(self.path, self._identity)

    def _require_open(self) -> None:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)

    def _require_writable(self) -> None:
        # The kernel would refuse as well, but with another error for each call and system.
        if self.read_only or self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)

    def _write_batch(self, offset: int, batch: list[Buffer], size: int) -> None:
        """Write the buffers, `size` bytes in all, from `offset`, however many calls it takes."""
        left = batch
        while size:
            done = _write_some(self, left, offset)
            if done == size:  # the usual case
                return
            if done == 0:
                raise OSError(errno.EIO, "a write made no progress", self.path)
            offset += done
            size -= done
            left = _rest(left, done)


def begin_writing(storage: Storage, start: int, *, little: bool) -> None:  # noqa: ARG001 - the twin's
    """Ask the disk to begin with what was written from byte `start` on. One system call, which does not wait for it.

    `little`: some pages, so that it is quick.  It promises nothing, the flush does; but what the system cannot
    even begin with, such as blocks that it finds no place for, it may forget.  The next flush would not tell, so
    this does: `OSError`, which is to be taken as a flush's.
    """
    if isinstance(storage, FileStorage):
        storage.begin_writing(start)


def size_of(storage: Storage) -> int:
    """The size of the file in bytes. One system call, which the compiled twin makes without asking the storage."""
    return storage.size()


def leads_to(path: str, identity: tuple[int, int]) -> bool:
    """Whether `path` leads to the file with that device and inode now. One system call, which asks for no times.

    Since Linux 6.13 a look at the times of a file, which `os.stat` takes, makes the next write set them to the
    nanosecond; and where there is no journal the next flush then brings the inode to the disk as well.  That took a
    fifth of a durable commit.
    """
    if linux.device_and_inode(path) == identity:
        return True
    try:
        found = os.stat(path)  # on another system, or to say what hinders it
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (found.st_dev, found.st_ino) == identity


def _rest(buffers: list[Buffer], done: int) -> list[Buffer]:
    """What is left of `buffers` after their first `done` bytes."""
    for index, buffer in enumerate(buffers):
        view = memoryview(buffer)
        if done < len(view):
            return [view[done:], *buffers[index + 1 :]]
        done -= len(view)
    return []


def _write_some(storage: FileStorage, views: Sequence[Buffer], offset: int) -> int:
    """One write call; the bytes that it took.

    The descriptor is looked up for the very call: a signal's handler that closes the storage before it, and opens
    another file, gives that one the same number.
    """
    if len(views) == 1 or not hasattr(os, "pwritev"):
        return os.pwrite(storage._fd, views[0], offset)  # noqa: SLF001 - it is a part of it that tests replace
    return os.pwritev(storage._fd, views, offset)  # noqa: SLF001


def _flush_data(storage: FileStorage) -> None:
    if sys.platform == "darwin":
        _flush_drive(storage._fd)  # noqa: SLF001
    elif hasattr(os, "fdatasync"):
        # It leaves out the times, but never the size that is needed to find the data again.
        os.fdatasync(storage._fd)  # noqa: SLF001
    else:
        os.fsync(storage._fd)  # noqa: SLF001


def _flush_drive(fd: int) -> None:
    """Flush through the drive's own cache, where the system tells the two apart (macOS)."""
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - not every system has it

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            # Only "not supported here" may fall back: an error of the medium must never be asked a second time.
            if error.errno not in UNSUPPORTED:
                raise
        else:
            return
    os.fsync(fd)


class FileDisk:
    """The file systems of the operating system; it has no state of its own."""

    def open(self, path: str, *, read_only: bool) -> FileStorage:
        """Open an existing regular file.

        Raises `FileNotFoundError`, `IsADirectoryError`, `PermissionError`, and
        `OSError` with ``EINVAL`` for a pipe, a socket or a device.
        """
        # Without O_NONBLOCK, opening a pipe would wait for its other end; regular files do not mind it.
        return _open_file(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NONBLOCK, 0, read_only=read_only)

    def create(self, path: str, mode: int) -> FileStorage:
        """Create an empty file with permissions `mode`, less the umask.  Raises `FileExistsError`."""
        return _open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, read_only=False)

    def link(self, source: str, target: str) -> None:
        """Let `target` name the file of `source`, in one step.  Raises `FileExistsError`.

        Where there are no hard links it renames if it finds no `target`.  Two
        creators can then be so close that the later one's empty file replaces
        the earlier one's; whoever opened the earlier one finds `is_current` false.
        """
        try:
            os.link(source, target)
        except OSError as error:
            # EPERM is what Linux says on FAT, EACCES what Android does.
            if error.errno not in UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK}:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
            os.rename(source, target)

    def remove(self, path: str) -> None:
        """Remove the name.  Raises `FileNotFoundError`."""
        os.unlink(path)

    def flush_directory(self, path: str) -> None:
        """Return when the names in the directory that holds `path` survive a power cut."""
        fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            _flush_drive(fd)
        except OSError as error:
            # Some file systems cannot flush a directory, and need not.
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(fd)


def _open_file(path: str, flags: int, mode: int, *, read_only: bool) -> FileStorage:
    # Absolute, so that `is_current` means the same after the process changed its directory.
    return FileStorage(os.path.abspath(path), flags, mode, read_only=read_only)


# ---------------------------------------------------------------- creation


def refuse_no_directory(path: str) -> None:
    """`FileNotFoundError` that names the directory, if the one that `path` lies in is not there."""
    directory = os.path.dirname(os.path.realpath(path))
    try:
        found = os.stat(directory)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "there is no such directory to make a file in", directory) from None
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)


def create_file(disk: Disk, path: str, content: bytes, mode: int) -> None:
    """Let `path` name a file that holds `content`, or leave the file that is there already.

    After a crash at any moment `path` names nothing or a complete file.  (etcd
    16596: bbolt wrote its first pages straight into place, and a power cut left a
    file that never opened again.)  When it returns, a power cut no longer
    removes the file.  Errors of the disk pass through; the temporary file
    (`path` with ``-new`` and a number) is removed then, but a crash may leave it.
    """
    # 1. Create a temporary file beside `path`; nobody else has its name.
    temporary, storage = _create_temporary(disk, path, mode)
    try:
        try:
            # 2. Write the content.
            storage.write(0, [content])
            # 3. Flush it, before any name that people open can lead to it.
            storage.flush()
        finally:
            storage.close()
        # 4. Give it its name. If somebody else was first, theirs is as good: they came by the same recipe.
        with contextlib.suppress(FileExistsError):
            disk.link(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    # 5. Remove the temporary name (a rename, where links are missing, has taken it along).
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)
    # 6. Flush the directory, whoever made the name: until then a power cut can take it back.
    disk.flush_directory(path)


def _create_temporary(disk: Disk, path: str, mode: int) -> tuple[str, Storage]:
    """A new file beside `path`: its name and its storage.

    Numbers rather than random names: a test with a fake disk repeats to the byte.
    """
    for number in itertools.count():
        temporary = f"{path}-new{number}"
        try:
            return temporary, disk.create(temporary, mode)
        except FileExistsError:
            if number + 1 == _TEMPORARY_NAMES:
                raise
    raise AssertionError("itertools.count ended")
