"""A disk whose pages are decided when they are first looked at.

A power cut leaves very many disks, and most of them differ only in pages that
nobody will ever read.  So a `Situation` says for each page which contents it may
have, and a `LazyFile` settles a page at its first touch, and remembers that:

    situation   page 0: a b    page 1: c    page 5: d e    page 9: f g h
    run         reads page 0 (a), page 5 (e) ... ends well
    met         0=a, 5=e       holds for 3 states: page 9 was never looked at

What a run finds depends on `met` alone, so it holds for every state of any
situation that agrees with it there.  This is exact only if no look is missed:
until it is touched, a page is zeros in every mapping, which no checksum in the
engine accepts, so a look that was missed fails loudly.

Looks through a mapping are seen by `TracedSpace`, which stands in for the engine's
plain `Space` while `installed` is on.  That also leaves the engine one page size
only, for it looks for a meta page with one read of the largest size there is.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cowdb import extent, kernel, space
from cowdb import format as fmt
from cowdb.storage import Buffer

__all__ = ["PAGE", "PLAIN", "SIZE", "LazyDisk", "LazyFile", "LazyStorage", "Situation", "Step", "installed", "replaced"]

PAGE: Final = fmt.PAGE_SIZES[0]
"""Bytes of a page: the smallest, for tiny databases."""

PLAIN: Final = {"COWDB_PURE": "1"}
"""The environment of processes that use `installed`."""

SIZE: Final = -1
"""Stands for the file's size where pages are numbered."""

ZEROS: Final = bytes(PAGE)

GONE: Final = b"\xde" * PAGE
"""What a mapping shows where the file was cut; on a real disk, touching it kills the process."""

Step = tuple[str, int, bytes]
"""An operation: ("write", offset, bytes), ("size", bytes, b""), ("begin", "end" or "failed", flush, b"")."""


@dataclass(frozen=True)
class Situation:
    """All states that a file may be in: the sizes in pages, and for each page the contents; a page not named is zeros.

    The first of each is the oldest, the last the newest.
    """

    sizes: tuple[int, ...]
    pages: dict[int, tuple[bytes, ...]]


@dataclass
class LazyFile:
    """One file in a situation: `forced` decides for the pages named there, elsewhere the first content is taken.

    `met` lists what was looked at and what was found, in order: page (or `SIZE`) and hash.
    """

    situation: Situation
    forced: dict[int, bytes | int] = field(default_factory=dict)
    size: int = 0
    met: list[tuple[int, int]] = field(default_factory=list)
    cache: dict[int, bytes] = field(default_factory=dict)
    trace: list[Step] = field(default_factory=list)
    views: list[memoryview] = field(default_factory=list)
    flushes: int = 0
    during_flush: Callable[[], None] | None = None
    before_change: Callable[[], None] | None = None
    failing: bool = False

    def __post_init__(self) -> None:
        """The size is looked at first: what a read gives depends on it."""
        size = self.forced.get(SIZE, self.situation.sizes[0])
        assert isinstance(size, int)
        self.size = size * PAGE
        self.met.append((SIZE, size))

    def page(self, number: int) -> bytes:
        """What page `number` holds, decided now if it was not."""
        content = self.cache.get(number)
        if content is None:
            choices = self.situation.pages.get(number)
            if choices is None:
                content = ZEROS
            else:
                forced = self.forced.get(number)
                content = forced if isinstance(forced, bytes) else choices[0]
            self.met.append((number, hash(content)))
            self.put(number, content)
        return content

    def put(self, number: int, content: bytes) -> None:
        """Let the page hold this, in every mapping too."""
        self.cache[number] = content
        at = number * PAGE
        for view in self.views:
            if at < len(view):
                view[at : at + PAGE] = content

    def read(self, offset: int, length: int) -> bytes:
        """As `Storage.read`."""
        end = min(offset + length, self.size)
        first, rest = divmod(offset, PAGE)
        if not rest and end == offset + PAGE:
            return self.page(first)
        if end <= offset:
            return b""
        pages = [self.page(number) for number in range(first, -(-end // PAGE))]
        return b"".join(pages)[rest : rest + end - offset]

    def write(self, offset: int, data: bytes) -> None:
        """Store, and record; the engine writes whole pages."""
        if offset % PAGE or len(data) % PAGE:
            first, last = offset // PAGE, -(-(offset + len(data)) // PAGE)
            old = self.read(first * PAGE, (last - first) * PAGE).ljust((last - first) * PAGE, b"\0")
            at = offset - first * PAGE
            data = old[:at] + data + old[at + len(data) :]
            offset = first * PAGE
        if offset > self.size:
            self.grow(offset)
        self.trace.append(("write", offset, data))
        for at in range(0, len(data), PAGE):
            self.put((offset + at) // PAGE, data[at : at + PAGE])
        self.size = max(self.size, offset + len(data))

    def grow(self, size: int) -> None:
        """New space reads as zeros."""
        for number in range(self.size // PAGE, size // PAGE):
            self.put(number, ZEROS)
        self.size = size

    def resize(self, size: int) -> None:
        """Cut or let grow, and record; the engine does so by whole pages."""
        if size % PAGE:
            raise AssertionError(f"{size} bytes are not whole pages")
        if size < self.size:
            for number in [number for number in self.cache if number * PAGE >= size]:
                self.put(number, GONE)
                del self.cache[number]
            self.size = size
        else:
            self.grow(size)
        self.trace.append(("size", size, b""))

    def flush(self) -> None:
        """Record a flush; `during_flush` is called in its middle. If it is `failing`, this one fails, and no other."""
        self.flushes += 1
        number = self.flushes
        self.trace.append(("begin", number, b""))
        if self.during_flush is not None:
            self.during_flush()
        if self.failing:
            self.failing = False
            self.trace.append(("failed", number, b""))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.trace.append(("end", number, b""))


class LazyMapping(mmap.mmap):
    """Anonymous memory in which pages appear when they are touched."""

    file: LazyFile


class LazyStorage:
    """A `cowdb.storage.Storage` over a `LazyFile`."""

    path = "/db"

    def __init__(self, file: LazyFile, *, read_only: bool = False) -> None:
        self.file = file
        self.read_only = read_only

    def size(self) -> int:
        """See `Storage`."""
        return self.file.size

    def read(self, offset: int, length: int) -> bytes:
        """See `Storage`."""
        return self.file.read(offset, length)

    def _change(self) -> None:
        if self.read_only:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        if self.file.before_change is not None:
            self.file.before_change()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See `Storage`. One operation of the trace."""
        self._change()
        self.file.write(offset, b"".join(buffers))

    def resize(self, size: int) -> None:
        """See `Storage`."""
        self._change()
        self.file.resize(size)

    def reserve(self, offset: int, length: int) -> None:
        """See `Storage`."""
        self._change()
        if offset + length > self.file.size:
            self.file.resize(offset + length)

    def flush(self) -> None:
        """See `Storage`."""
        self._change()
        self.file.flush()

    def flush_name(self) -> None:
        """See `Storage`. The name is there from the start; how it comes to be is tried in `crash_birth`."""

    def map(self, length: int) -> LazyMapping:
        """See `Storage`. What was touched before is there."""
        if not 0 < length <= self.file.size:
            raise ValueError(f"cannot map {length} bytes of a file of {self.file.size}")
        mapping = LazyMapping(-1, length)
        mapping.file = self.file
        view = memoryview(mapping)
        self.file.views.append(view)
        for number, content in self.file.cache.items():
            at = number * PAGE
            if at < length:
                view[at : at + PAGE] = content
        return mapping

    def close(self) -> None:
        """See `Storage`."""

    def identity(self) -> tuple[int, int]:
        """See `Storage`."""
        return 0, id(self.file)

    def is_current(self) -> bool:
        """See `Storage`."""
        return True


class LazyDisk:
    """A `cowdb.storage.Disk` with one file, which is always there."""

    def __init__(self, file: LazyFile) -> None:
        self.file = file

    def open(self, path: str, *, read_only: bool) -> LazyStorage:  # noqa: ARG002 - there is one
        """See `Disk`."""
        return LazyStorage(self.file, read_only=read_only)

    def create(self, path: str, mode: int) -> LazyStorage:  # noqa: ARG002 - there is one
        """See `Disk`."""
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)

    def link(self, source: str, target: str) -> None:  # noqa: ARG002 - there is one
        """See `Disk`."""
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)

    def remove(self, path: str) -> None:
        """See `Disk`."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def flush_directory(self, path: str) -> None:
        """See `Disk`."""


class TracedSpace(space.Space):
    """A `Space` that touches pages before it looks at them."""

    __slots__ = ()

    def meet(self, bits: int, level: int) -> None:
        """See `Space`."""
        self._touch(bits & fmt.MAX_U48, 1)
        super().meet(bits, level)

    def overflow(self, raw: bytes) -> tuple[int, int]:
        """See `Space`."""
        bits = int.from_bytes(raw, "little")
        self._touch(bits & fmt.MAX_U48, fmt.overflow_pages(bits >> 96 & fmt.MAX_U48, self.page_size))
        return super().overflow(raw)

    def _touch(self, number: int, pages: int) -> None:
        if isinstance(self.data, LazyMapping):
            file = self.data.file
            for each in range(number, min(number + pages, self.pages, file.size // PAGE)):
                file.page(each)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """For a while `owner` has another value under this name."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """While it is on, the engine's looks into mappings are seen, and it knows one page size.

    Raises `RuntimeError` with the compiled kernel, which looks into mappings by itself: see `PLAIN`.
    """
    if kernel.FORM != "plain":
        raise RuntimeError("power cuts are tried on the plain kernel: set COWDB_PURE=1")
    with replaced(extent, "Space", TracedSpace), replaced(fmt, "PAGE_SIZES", (PAGE,)):
        yield
