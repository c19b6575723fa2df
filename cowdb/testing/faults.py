"""A disk that fails on command, whatever disk lies below.

Every call is counted, by kind and in all; an armed fault strikes at the k-th
call that it counts, so that a loop over k tries a failure at each place:

    for k in itertools.count(1):            call 1   2   3   4
        disk = FaultyDisk(MemoryDisk())          |   |   X
        fault = disk.fail(errno.EIO, at=k)               +-- OSError(EIO), with k = 3
        ...run, see what the engine says...
        if not fault.fired:
            break                           # the run had fewer than k calls

A kill is a fault as well: it raises `SimulatedKill`, which is no `Exception`,
and from then on the "process" can call nothing but `close`.  What it wrote
stays in the page cache: open the disk below to see what the next process sees.
"""

from __future__ import annotations

import collections
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cowdb.testing.memory import MemoryStorage, system_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowdb.storage import Buffer, Disk, Mapping, Storage

__all__ = ["CALLS", "Fault", "FaultyDisk", "FaultyStorage", "SimulatedKill"]

CALLS: Final = frozenset(
    {
        "open", "create", "link", "remove", "flush_directory",
        "size", "read", "write", "resize", "reserve", "flush", "map", "identity", "is_current", "close",
    }
)  # fmt: skip
"""The kinds of calls; `close` is counted, but fails only if a fault names it."""


class SimulatedKill(BaseException):
    """The process was killed here; not an `Exception`, so that nobody handles it by accident."""


@dataclass(eq=False, slots=True)
class Fault:
    """A failure that waits for its call.

    `error` is an errno, or None for a kill; `call` a kind of call, or None for
    any; `at` counts from 1, from the moment of arming; `partial` is how many
    bytes of a write are still done (None: half of them); `fired` how often it
    has struck.
    """

    error: int | None
    call: str | None
    at: int
    forever: bool
    partial: int | None
    seen: int = 0
    fired: int = 0

    def strikes(self, call: str) -> bool:
        """Count a call, and say whether it fails."""
        if call != self.call and (self.call is not None or call == "close"):
            return False
        self.seen += 1
        if self.seen == self.at or (self.forever and self.seen > self.at):
            self.fired += 1
            return True
        return False


class FaultyDisk:
    """A `cowdb.storage.Disk` around another one, with faults, a counter of calls and a yield point.

    `calls` counts by kind, `total` in all.  `before`, if given, is called with
    the kind and the running number of each call before it is made (by the
    calling thread, without a lock): the place to force an order of threads.
    """

    def __init__(self, disk: Disk, *, before: Callable[[str, int], None] | None = None) -> None:
        self.disk: Final = disk
        self.before = before
        self.calls: Final[collections.Counter[str]] = collections.Counter()
        self.total = 0
        self.killed = False
        self._faults: list[Fault] = []
        self._lock: Final = threading.Lock()

    # ------------------------------------------------------------ faults

    def fail(
        self, error: int, *, call: str | None = None, at: int = 1, forever: bool = False, partial: int | None = 0
    ) -> Fault:
        """Arm a failure: the `at`-th call from now (of kind `call`) raises `OSError` with errno `error`.

        `forever` lets all such calls after it fail as well, until `heal`.
        `partial` bytes of a write are done before it fails (None: half).  A
        flush that fails loses what it should have written: see `CrashDisk`.
        """
        return self._arm(Fault(error, call, at, forever, partial))

    def kill(self, *, call: str | None = None, at: int = 1, partial: int | None = None) -> Fault:
        """Arm a kill: the `at`-th call from now raises `SimulatedKill`, and so does every later one.

        A write is done up to `partial` bytes (None: half); other calls are not
        done.  ``at=k+1`` is the kill just after call k.
        """
        return self._arm(Fault(None, call, at, forever=False, partial=partial))

    def heal(self) -> None:
        """Disarm all faults; a killed process stays dead."""
        with self._lock:
            self._faults.clear()

    def _arm(self, fault: Fault) -> Fault:
        if fault.call is not None and fault.call not in CALLS:
            raise ValueError(f"no kind of call: {fault.call!r}; there are {', '.join(sorted(CALLS))}")
        if fault.at < 1:
            raise ValueError(f"calls count from 1, not {fault.at}")
        if fault.partial is not None and fault.partial < 0:
            raise ValueError(f"cannot write {fault.partial} bytes")
        with self._lock:
            self._faults.append(fault)
        return fault

    def strike(self, call: str) -> Fault | None:
        """Count this call; the fault that hits it, if any."""
        with self._lock:
            if self.killed:
                raise SimulatedKill(f"{call} by a process that was killed")
            self.calls[call] += 1
            self.total += 1
            number = self.total
        if self.before is not None:
            self.before(call, number)
        with self._lock:
            struck = [fault for fault in self._faults if fault.strikes(call)]
            for fault in struck:
                if fault.error is None:  # a kill goes before an error of the same call
                    self.killed = True
                    return fault
            return struck[0] if struck else None

    def enter(self, call: str, path: str) -> None:
        """Count this call, and raise if it fails."""
        fault = self.strike(call)
        if fault is not None:
            self.raise_fault(fault, call, path)

    def raise_fault(self, fault: Fault, call: str, path: str) -> None:
        """Raise what `fault` stands for."""
        if fault.error is None:
            raise SimulatedKill(f"killed at {call} number {self.calls[call]}, call {self.total}")
        raise system_error(fault.error, path)

    # ------------------------------------------------------------ the protocol

    def open(self, path: str, *, read_only: bool) -> FaultyStorage:
        """Open an existing file."""
        self.enter("open", path)
        return FaultyStorage(self, self.disk.open(path, read_only=read_only))

    def create(self, path: str, mode: int) -> FaultyStorage:
        """Create an empty file."""
        self.enter("create", path)
        return FaultyStorage(self, self.disk.create(path, mode))

    def link(self, source: str, target: str) -> None:
        """Let `target` name the file of `source` too."""
        self.enter("link", target)
        self.disk.link(source, target)

    def remove(self, path: str) -> None:
        """Remove the name."""
        self.enter("remove", path)
        self.disk.remove(path)

    def flush_directory(self, path: str) -> None:
        """Flush the names in the directory that holds `path`."""
        self.enter("flush_directory", os.path.dirname(path))
        self.disk.flush_directory(path)


class FaultyStorage:
    """One open file of a `FaultyDisk`; see `cowdb.storage.Storage` for what the methods promise."""

    def __init__(self, disk: FaultyDisk, storage: Storage) -> None:
        self.disk: Final = disk
        self.storage: Final = storage

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self.storage!r}>"

    @property
    def path(self) -> str:
        """The absolute path that it was opened by."""
        return self.storage.path

    @property
    def read_only(self) -> bool:
        """Whether it refuses changes."""
        return self.storage.read_only

    def size(self) -> int:
        """The size of the file in bytes."""
        self.disk.enter("size", self.path)
        return self.storage.size()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`: `length` of them, or fewer at the end of the file."""
        self.disk.enter("read", self.path)
        return self.storage.read(offset, length)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers, one after the other, from `offset`, or part of them and fail."""
        fault = self.disk.strike("write")
        if fault is None:
            self.storage.write(offset, buffers)
            return
        data = b"".join(memoryview(buffer).tobytes() for buffer in buffers)
        done = len(data) // 2 if fault.partial is None else fault.partial
        if data[:done]:
            self.storage.write(offset, [data[:done]])
        self.disk.raise_fault(fault, "write", self.path)

    def resize(self, size: int) -> None:
        """Cut the file, or let it grow by a hole that reads as zeros."""
        self.disk.enter("resize", self.path)
        self.storage.resize(size)

    def reserve(self, offset: int, length: int) -> None:
        """Have real blocks behind these bytes."""
        self.disk.enter("reserve", self.path)
        self.storage.reserve(offset, length)

    def flush(self) -> None:
        """Flush, or fail; a flush that fails leaves each byte old or new for good."""
        fault = self.disk.strike("flush")
        if fault is None:
            self.storage.flush()
            return
        if fault.error is not None:
            self._lose()
        self.disk.raise_fault(fault, "flush", self.path)

    def flush_name(self) -> None:
        """Flush the directory of the file; counted as `flush_directory`."""
        self.disk.flush_directory(self.path)

    def lose_flush(self) -> None:
        """Be a flush that failed, for a `FaultyDisk` around this one."""
        self.disk.enter("flush", self.path)
        self._lose()

    def _lose(self) -> None:
        if isinstance(self.storage, MemoryStorage | FaultyStorage):
            self.storage.lose_flush()

    def map(self, length: int) -> Mapping:
        """Map the first `length` bytes for reading."""
        self.disk.enter("map", self.path)
        return self.storage.map(length)

    def close(self) -> None:
        """Let go of the file, even after a kill: the system closes what a dead process had open."""
        try:
            if not self.disk.killed:
                self.disk.enter("close", self.path)
        finally:
            self.storage.close()

    def identity(self) -> tuple[int, int]:
        """Device and inode."""
        self.disk.enter("identity", self.path)
        return self.storage.identity()

    def is_current(self) -> bool:
        """Whether `path` still leads to this file."""
        self.disk.enter("is_current", self.path)
        return self.storage.is_current()
