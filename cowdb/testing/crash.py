"""A disk that remembers every store and can show what a power cut would leave.

    disk = CrashDisk()
    ...the program under test runs on it...
    for index in range(len(disk.trace) + 1):       cut the power before each
        for image in disk.images(index):           operation, in many ways
            ...open `image`, compare with what was promised...

An image is a `MemoryDisk` of its own.  To cut the power again while it is being
recovered, run the recovery on ``CrashDisk(image)``.  What is legal is written in
`states`; the operations are in `trace`.
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cowdb.testing.memory import MemoryDisk, MemoryFile, MemoryStorage
from cowdb.testing.states import STRATEGIES, Moment, Replay
from cowdb.testing.trace import (
    Create,
    FlushBegin,
    FlushDirectory,
    FlushEnd,
    FlushFailed,
    Link,
    Operation,
    Remove,
    Resize,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CrashDisk", "CrashStorage", "Image", "Origin"]

_ATTEMPTS: Final = 4
"""Samples drawn for each image asked for: equal states are given once, and some strategies have few."""

_Candidate = tuple[str, tuple[int, ...], dict[int, bytes]]
"""A strategy's name, its choice, and the bytes of spoiled sectors."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How an image was made; `CrashDisk.rebuild` makes it again from the same trace."""

    index: int
    sector: int
    strategy: str
    number: int
    limit: int
    seed: int
    only: str | None
    hostile: tuple[str, ...]


class Image(MemoryDisk):
    """The disk after a power cut; `origin` says which."""

    def __init__(self, disk: MemoryDisk, origin: Origin) -> None:
        super().__init__()
        self.adopt(disk.names)
        self.origin: Final = origin


class CrashStorage(MemoryStorage):
    """One open file of a `CrashDisk`."""

    disk: CrashDisk

    def flush(self) -> None:
        """Make durable what was written before this call."""
        file, number = self._begin()
        if self.disk.during_flush is not None:
            self.disk.during_flush()
        self.disk.record(FlushEnd(file.number, number))

    def lose_flush(self) -> None:
        """Be a flush that failed: each store since the last one is durable or not, for good; the caller raises."""
        file, number = self._begin()
        self.disk.record(FlushFailed(file.number, number))

    def _begin(self) -> tuple[MemoryFile, int]:
        with self.disk.lock:
            file = self._file(change=True)
            number = self.disk.next_flush()
            self.disk.record(FlushBegin(file.number, number))
            return file, number

    def _store(self, file: MemoryFile, offset: int, data: bytes) -> None:
        super()._store(file, offset, data)
        self.disk.record(Write(file.number, offset, data))

    def _set_size(self, file: MemoryFile, size: int) -> None:
        super()._set_size(file, size)
        self.disk.record(Resize(file.number, size))


class CrashDisk(MemoryDisk):
    """A `MemoryDisk` with a trace.

    It starts empty, or as a copy of `start`, all of which is durable.
    `during_flush`, if given, is called in the middle of each flush, without a
    lock: the place for another thread to write.
    """

    storage_type = CrashStorage

    def __init__(
        self,
        start: MemoryDisk | None = None,
        *,
        capacity: int | None = None,
        during_flush: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(capacity=capacity)
        self.trace: Final[list[Operation]] = []
        self.during_flush = during_flush
        self._flushes = itertools.count(1)
        self._replays: dict[int, Replay] = {}
        self._start: Final = MemoryDisk() if start is None else start.copy()
        self.adopt(self._start.copy().names)

    # ------------------------------------------------------------ recording

    def create(self, path: str, mode: int) -> MemoryStorage:
        """Create an empty file.  Raises `FileExistsError`."""
        with self.lock:
            storage = super().create(path, mode)
            self.record(Create(self.names[storage.path].number, storage.path, mode))
            return storage

    def link(self, source: str, target: str) -> None:
        """Let `target` name the file of `source` too.  Raises `FileExistsError`, `FileNotFoundError`."""
        with self.lock:
            super().link(source, target)
            target = os.path.abspath(target)
            self.record(Link(self.names[target].number, os.path.abspath(source), target))

    def remove(self, path: str) -> None:
        """Remove the name.  Raises `FileNotFoundError`."""
        with self.lock:
            path = os.path.abspath(path)
            number = self._find(path).number
            super().remove(path)
            self.record(Remove(number, path))

    def flush_directory(self, path: str) -> None:
        """Make durable which names there are in the directory that holds `path`."""
        self.record(FlushDirectory(os.path.dirname(os.path.abspath(path))))

    def record(self, operation: Operation) -> None:
        """Add an operation to the trace."""
        with self.lock:
            self.trace.append(operation)

    def next_flush(self) -> int:
        """A number for a flush."""
        return next(self._flushes)

    def install(self, path: str, content: bytes) -> None:
        """Put a new, durable file there, in place of any other; the trace shows how."""
        with self.lock:
            if os.path.abspath(path) in self.names:
                self.remove(path)
            storage = self.create(path, 0o600)
            storage.write(0, [content])
            storage.flush()
            storage.close()
            self.flush_directory(path)

    # ------------------------------------------------------------ crashing

    def at(self, index: int, *, sector: int = 512) -> Moment:
        """What a power cut after the first `index` operations may leave, in sectors of so many bytes.

        Cheap if `index` rises from call to call, O(trace) otherwise.  Raises
        `IndexError` past the end of the trace.
        """
        return self._replay(index, sector).moment()

    def images(
        self,
        index: int,
        *,
        strategy: str | None = None,
        sector: int = 512,
        limit: int = 64,
        seed: int = 0,
        hostile: Sequence[str] = (),
    ) -> Iterator[Image]:
        """Up to `limit` different legal disks after a power cut behind the first `index` operations.

        All of them if there are not more, else samples: by one strategy of
        `STRATEGIES`, or by all in turn.  `hostile` names variants of `HOSTILE`
        that spoil some sectors in doubt of each sample.  The same trace and
        arguments give the same images.
        """
        moment = self.at(index, sector=sector)
        if strategy is None and not hostile and moment.count() <= limit:
            candidates = self._every(moment)
        else:
            candidates = self._samples(moment, strategy, limit, seed, tuple(hostile))
        seen: set[object] = set()
        for name, choice, spoiled in candidates:
            key = moment.key(choice, spoiled)
            if key in seen:
                continue
            number = len(seen)
            if number == limit:
                return
            seen.add(key)
            origin = Origin(index, sector, name, number, limit, seed, strategy, tuple(hostile))
            yield Image(moment.build(choice, spoiled), origin)

    def every_image(self, index: int, *, sector: int = 512, limit: int = 10_000) -> Iterator[Image]:
        """Every legal disk after a power cut behind the first `index` operations, each once.

        Raises `ValueError` at the first step if there are more than `limit` choices.
        """
        count = self.at(index, sector=sector).count()
        if count > limit:
            raise ValueError(f"{count} choices are too many to try, the limit is {limit}")
        yield from self.images(index, sector=sector, limit=limit)

    def rebuild(self, origin: Origin) -> Image:
        """The image of that origin once more."""
        images = self.images(
            origin.index,
            strategy=origin.only,
            sector=origin.sector,
            limit=origin.limit,
            seed=origin.seed,
            hostile=origin.hostile,
        )
        return next(itertools.islice(images, origin.number, None))

    def after_kill(self, index: int, *, partial: int = 0) -> MemoryDisk:
        """The disk as the next process sees it if the process dies behind the first `index` operations.

        The power stays on, so all of them are seen; of the next one, if it is a
        write, the first `partial` bytes.
        """
        disk = self._replay(index, 512).page_cache()
        if partial > 0 and index < len(self.trace):
            operation = self.trace[index]
            if isinstance(operation, Write):
                for file in set(disk.names.values()):
                    if file.number == operation.file:
                        file.store(operation.offset, operation.data[:partial])
        return disk

    def _replay(self, index: int, sector: int) -> Replay:
        with self.lock:
            if not 0 <= index <= len(self.trace):
                raise IndexError(f"there are {len(self.trace)} operations, not {index}")
            replay = self._replays.get(sector)
            if replay is None or replay.index > index:
                replay = self._replays[sector] = Replay(self._start, sector)
            for operation in self.trace[replay.index : index]:
                replay.apply(operation)
            return replay

    @staticmethod
    def _every(moment: Moment) -> Iterator[_Candidate]:
        for choice in moment.choices():
            yield "every", choice, {}

    @staticmethod
    def _samples(
        moment: Moment, only: str | None, limit: int, seed: int, hostile: tuple[str, ...]
    ) -> Iterator[_Candidate]:
        # A string seeds the same generator in every process, whatever its hash seed.
        rng = random.Random(f"{seed} {moment.index} {moment.sector} {only} {hostile}")  # noqa: S311 - it must repeat
        names = itertools.cycle(STRATEGIES if only is None else (only,))
        for name in itertools.islice(names, _ATTEMPTS * limit + len(STRATEGIES)):
            choice = moment.choose(name, rng)
            yield name, choice, moment.spoil(choice, hostile, rng)
