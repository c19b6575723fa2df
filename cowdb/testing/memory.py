"""A disk in memory that behaves like the real one while the power is on.

Files have names, hard links and live mappings, as on a real disk.  What a file
holds is its page cache, here a `bytearray`; a mapping is anonymous memory into
which every later store is copied:

    write() --> cache (bytearray) --+--> mapping handed out first
                                    +--> mapping handed out later

Differences from a real disk, all on purpose:

* bytes of a mapping past the end of a file that was cut can be touched (a real
  disk would kill the process); they hold `POISON`, so that whoever believes
  them finds a wrong checksum;
* ``memoryview(mapping)`` is writable, because only a mapping of a real file can
  refuse; `MemoryDisk.check_mappings` finds out whether somebody wrote;
* every directory exists, and permissions are remembered but not enforced;
* a child after a fork has a copy of the disk, not the disk.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import mmap
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping as Dictionary
    from collections.abc import Sequence

    from cowdb.storage import Buffer

__all__ = ["POISON", "LiveMapping", "MemoryDisk", "MemoryFile", "MemoryStorage", "system_error"]

POISON: Final = 0xDE
"""What a mapping holds where its file was cut off."""

BLOCK: Final = 4096
"""Bytes that the disk allocates at a time, for `MemoryDisk.capacity`."""

_devices: Final = itertools.count(1)


def system_error(number: int, path: str) -> OSError:
    """The `OSError` that the operating system would raise for `path`; a subclass where there is one."""
    return OSError(number, os.strerror(number), path)


class LiveMapping(mmap.mmap):
    """Anonymous memory that follows its file; it refuses item assignment like a real read-only mapping."""

    def __setitem__(self, where: object, value: object, /) -> None:
        """Raise `TypeError`: mappings are for reading."""
        raise TypeError("a mapping of a data file is read-only")


class MemoryFile:
    """What a name leads to: the content, and the mappings that follow it."""

    def __init__(self, number: int, mode: int, content: bytes | bytearray = b"") -> None:
        self.number: Final = number
        self.mode: Final = mode
        self.cache: Final = bytearray(content)
        self.blocks: Final = set(range(_blocks(len(content))))
        """Blocks that the disk allocated; a hole has none."""
        self._mappings: list[weakref.ref[LiveMapping]] = []

    def store(self, offset: int, data: bytes) -> None:
        """Put `data`, not empty, at `offset`; a gap before it becomes a hole. O(bytes, times mappings)."""
        if offset > len(self.cache):
            self.set_size(offset)
        end = offset + len(data)
        self.blocks.update(range(offset // BLOCK, _blocks(end)))
        self.cache[offset:end] = data
        self._show(offset, data)

    def set_size(self, size: int) -> None:
        """Cut the file, or let it grow by a hole."""
        old = len(self.cache)
        if size > old:
            self.cache.extend(bytes(size - old))
            self._show(old, bytes(size - old))
        elif size < old:
            del self.cache[size:]
            self.blocks.intersection_update(range(_blocks(size)))
            # As on the real disk: zeros up to the end of the memory page, past it nothing that may be touched.
            edge = min(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, old)
            self._show(size, bytes(edge - size) + bytes([POISON]) * (old - edge))

    def map(self, length: int) -> LiveMapping:
        """A mapping of the first `length` bytes.  Raises `ValueError` if there are not so many."""
        if length <= 0:
            raise ValueError(f"cannot map {length} bytes")
        if length > len(self.cache):
            raise ValueError(f"cannot map {length} bytes of a file of {len(self.cache)}")
        # ACCESS_COPY means private memory: a child after a fork cannot write into the parent's mappings.
        mapping = LiveMapping(-1, length, access=mmap.ACCESS_COPY)
        with memoryview(mapping) as view, memoryview(self.cache) as content:
            view[:] = content[:length]
        self._mappings.append(weakref.ref(mapping))
        return mapping

    def live_mappings(self) -> list[LiveMapping]:
        """The mappings that somebody still holds, oldest first."""
        alive = [(ref, mapping) for ref in self._mappings if (mapping := ref()) is not None and not mapping.closed]
        self._mappings = [ref for ref, _ in alive]
        return [mapping for _, mapping in alive]

    def check_mappings(self) -> None:
        """Raise `AssertionError` if a mapping holds other bytes than the file: somebody wrote through it."""
        for mapping in self.live_mappings():
            common = min(len(mapping), len(self.cache))
            with memoryview(mapping) as view, memoryview(self.cache) as content:
                if view[:common] != content[:common]:
                    first = next(at for at in range(common) if view[at] != content[at])
                    raise AssertionError(f"byte {first} of a mapping was written to")

    def _show(self, offset: int, data: bytes) -> None:
        for mapping in self.live_mappings():
            room = len(mapping) - offset
            if room > 0:
                with memoryview(mapping) as view:
                    view[offset : offset + len(data)] = data[:room]


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


class MemoryStorage:
    """One open file of a `MemoryDisk`; see `cowdb.storage.Storage` for what the methods promise."""

    def __init__(self, disk: MemoryDisk, file: MemoryFile, path: str, *, read_only: bool) -> None:
        self.disk = disk
        self.path: Final = path
        self.read_only: Final = read_only
        self._open_file: MemoryFile | None = file

    def __repr__(self) -> str:
        kind = "closed" if self._open_file is None else "read-only" if self.read_only else "open"
        return f"<{type(self).__name__} {self.path!r} {kind}>"

    def size(self) -> int:
        """The size of the file in bytes."""
        with self.disk.lock:
            return len(self._file().cache)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`: `length` of them, or fewer at the end of the file."""
        with self.disk.lock:
            file = self._file()
            if offset < 0 or length < 0:
                raise system_error(errno.EINVAL, self.path)
            return bytes(file.cache[offset : offset + length])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers, one after the other, from `offset`; ``ENOSPC`` beyond the disk's capacity."""
        with self.disk.lock:
            file = self._file(change=True)
            if offset < 0:
                raise system_error(errno.EINVAL, self.path)
            for buffer in buffers:
                view = memoryview(buffer)
                if view.nbytes == 0:
                    continue
                data = view.cast("B").tobytes()  # refuses what has gaps, with a TypeError
                fits = self._fitting(file, offset, len(data))
                if fits:
                    self._store(file, offset, data[:fits])
                if fits < len(data):
                    raise system_error(errno.ENOSPC, self.path)
                offset += len(data)

    def resize(self, size: int) -> None:
        """Cut the file, or let it grow by a hole that reads as zeros."""
        with self.disk.lock:
            file = self._file(change=True)
            if size < 0:
                raise system_error(errno.EINVAL, self.path)
            self._set_size(file, size)

    def reserve(self, offset: int, length: int) -> None:
        """Have blocks behind these bytes; ``ENOSPC`` beyond the disk's capacity."""
        with self.disk.lock:
            file = self._file(change=True)
            if offset < 0 or length <= 0:
                raise system_error(errno.EINVAL, self.path)
            if self._fitting(file, offset, length) < length:
                raise system_error(errno.ENOSPC, self.path)
            if offset + length > len(file.cache):
                self._set_size(file, offset + length)
            file.blocks.update(range(offset // BLOCK, _blocks(offset + length)))

    def flush(self) -> None:
        """Do nothing but check that the file is open for changes: here nothing is ever lost."""
        with self.disk.lock:
            self._file(change=True)

    def lose_flush(self) -> None:
        """Be a flush that failed; the caller raises.  A `CrashDisk` remembers it."""
        self.flush()

    def flush_name(self) -> None:
        """Make the names in the file's directory durable."""
        self._file()
        self.disk.flush_directory(self.path)

    def map(self, length: int) -> LiveMapping:
        """Map the first `length` bytes for reading."""
        with self.disk.lock:
            return self._file().map(length)

    def close(self) -> None:
        """Let go of the file; mappings stay valid and live."""
        self._open_file = None

    def identity(self) -> tuple[int, int]:
        """The disk's number and the file's."""
        return self.disk.device, self._file().number

    def is_current(self) -> bool:
        """Whether `path` still leads to this file."""
        with self.disk.lock:
            return self.disk.names.get(self.path) is self._file()

    def _store(self, file: MemoryFile, offset: int, data: bytes) -> None:
        file.store(offset, data)

    def _set_size(self, file: MemoryFile, size: int) -> None:
        file.set_size(size)

    def _file(self, *, change: bool = False) -> MemoryFile:
        if self._open_file is None or (change and self.read_only):
            raise system_error(errno.EBADF, self.path)
        return self._open_file

    def _fitting(self, file: MemoryFile, offset: int, length: int) -> int:
        """How many of these bytes the disk has room for: a write on a full disk is a short write."""
        if self.disk.capacity is None:
            return length
        room = self.disk.capacity // BLOCK - self.disk.used_blocks()
        for block in range(offset // BLOCK, _blocks(offset + length)):
            if block not in file.blocks:
                if room <= 0:
                    return max(0, block * BLOCK - offset)
                room -= 1
        return length


class MemoryDisk:
    """A file system in memory: a `cowdb.storage.Disk` without a disk.

    `files` maps paths to contents to begin with.  `capacity`, in bytes, may be
    set and changed at any time: files hold whole blocks of 4 KiB, holes hold
    none, and a write for which there is no block is cut short and raises
    ``ENOSPC``.  Safe for threads.
    """

    storage_type: type[MemoryStorage] = MemoryStorage

    def __init__(self, files: Dictionary[str, bytes] | None = None, *, capacity: int | None = None) -> None:
        self.lock: Final = threading.RLock()
        self.device: Final = next(_devices)
        self.capacity = capacity
        self.names: Final[dict[str, MemoryFile]] = {}
        self._numbers = itertools.count(1)
        for path, content in (files or {}).items():
            self.install(path, content)

    # ------------------------------------------------------------ the protocol

    def open(self, path: str, *, read_only: bool) -> MemoryStorage:
        """Open an existing file.  Raises `FileNotFoundError`."""
        path = os.path.abspath(path)
        with self.lock:
            return self.storage_type(self, self._find(path), path, read_only=read_only)

    def create(self, path: str, mode: int) -> MemoryStorage:
        """Create an empty file.  Raises `FileExistsError`."""
        path = os.path.abspath(path)
        with self.lock:
            if path in self.names:
                raise system_error(errno.EEXIST, path)
            file = self.names[path] = MemoryFile(next(self._numbers), mode)
            return self.storage_type(self, file, path, read_only=False)

    def link(self, source: str, target: str) -> None:
        """Let `target` name the file of `source` too.  Raises `FileExistsError`, `FileNotFoundError`."""
        target = os.path.abspath(target)
        with self.lock:
            file = self._find(os.path.abspath(source))
            if target in self.names:
                raise system_error(errno.EEXIST, target)
            self.names[target] = file

    def remove(self, path: str) -> None:
        """Remove the name.  Raises `FileNotFoundError`."""
        path = os.path.abspath(path)
        with self.lock:
            self._find(path)
            del self.names[path]

    def flush_directory(self, path: str) -> None:
        """Do nothing: here nothing is ever lost."""

    # ------------------------------------------------------------ for tests

    def install(self, path: str, content: bytes) -> None:
        """Put a new file there, in place of any other; those who have the other one open keep it."""
        with self.lock:
            self.names[os.path.abspath(path)] = MemoryFile(next(self._numbers), 0o600, content)

    def adopt(self, names: Dictionary[str, MemoryFile]) -> None:
        """Take over files, under these absolute paths, in place of all that is there."""
        with self.lock:
            self.names.clear()
            self.names.update(names)
            self._numbers = itertools.count(1 + max((file.number for file in names.values()), default=0))

    def copy(self) -> MemoryDisk:
        """An independent disk with the same names, links and contents. O(bytes)."""
        disk = MemoryDisk(capacity=self.capacity)
        with self.lock:
            copies = {file: MemoryFile(file.number, file.mode, bytes(file.cache)) for file in self.names.values()}
            for file, twin in copies.items():
                twin.blocks.intersection_update(file.blocks)
            disk.adopt({path: copies[file] for path, file in self.names.items()})
        return disk

    def content(self, path: str) -> bytes:
        """What a file holds.  Raises `FileNotFoundError`."""
        with self.lock:
            return bytes(self._find(os.path.abspath(path)).cache)

    def paths(self) -> list[str]:
        """All names, sorted."""
        with self.lock:
            return sorted(self.names)

    def used_blocks(self) -> int:
        """Blocks of 4 KiB that the files with a name hold."""
        with self.lock:
            return sum(len(file.blocks) for file in set(self.names.values()))

    def digest(self) -> bytes:
        """A hash of the names, the links and the contents: equal for equal disks. O(bytes)."""
        with self.lock:
            sums: dict[MemoryFile, bytes] = {}
            total = hashlib.blake2b(digest_size=16)
            for path in sorted(self.names):
                file = self.names[path]
                if file not in sums:
                    # The position tells two names of one file from two equal files.
                    sums[file] = hashlib.blake2b(file.cache, digest_size=16).digest() + len(sums).to_bytes(4, "big")
                name = os.fsencode(path)
                total.update(len(name).to_bytes(4, "big") + name + sums[file])
            return total.digest()

    def check_mappings(self) -> None:
        """Raise `AssertionError` if somebody wrote through a mapping instead of `write`. O(mapped bytes)."""
        with self.lock:
            for file in set(self.names.values()):
                file.check_mappings()

    def _find(self, path: str) -> MemoryFile:
        try:
            return self.names[path]
        except KeyError:
            raise system_error(errno.ENOENT, path) from None
