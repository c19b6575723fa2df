"""What a disk may hold after a power cut: the crash model as data.

A moment is the disk between two operations of a trace.  It is a list of
*cells*, each of which holds one of several versions, independently of all
others: a sector, the size of a file, or what a name leads to.

    flush done        write a     write b         power cut here
    ----+---------------+-----------+-------------------+------>
        sector 7:  old  |  a        |  b          versions: old, a, b
        size:      8192 |  12288    |             versions: 8192, 12288
        name "x":  -    (created)                 versions: none, file 1

A flush settles the cells that were changed before it began: they keep the
version of that time and later ones.  A flush that failed settles nothing, and
leaves its cells clean: a later flush passes over them until they are changed
again.

A legal state is one choice of a version for each cell.  Beyond the versions
there are hostile ones for the sectors in doubt: zeros, garbage, and torn at 8
bytes between two versions.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cowdb.testing.memory import MemoryDisk, MemoryFile
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
    import random

__all__ = ["HOSTILE", "STRATEGIES", "Cell", "Moment", "Replay"]

HOSTILE: Final = ("zeros", "garbage", "torn")
"""What a sector in doubt may hold, other than one of its versions."""

FRESH_SECTORS: Final = 1024
"""Sectors of a hole that hostile variants know of, for each growth: a hole can be huge."""

WORD: Final = 8
"""Bytes that a device never tears apart."""

BEFORE: Final = -1
"""The operation number of what was there before the trace."""

_END: Final = 1 << 62
"""An operation number after all others."""

Value = bytes | int | None
"""A version: the bytes of a sector, the size of a file, the number of the file that a name leads to (None: no file)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A place of the disk that a power cut leaves at any of its versions.

    `kind` is ``"sector"``, ``"size"`` or ``"name"``; `where` is the number of
    the file and of the sector, the number of the file, or the path.  Versions
    come oldest first, each with the operation that made it.
    """

    kind: str
    where: tuple[int, int] | int | str
    versions: tuple[tuple[int, Value], ...]

    @property
    def distinct(self) -> tuple[int, ...]:
        """Indices of versions that differ from each other; the last of equals."""
        return tuple(sorted({value: index for index, (_, value) in enumerate(self.versions)}.values()))


# ---------------------------------------------------------------- one cell over time


class _History:
    """The versions of one cell that may be on disk, as operations and flushes go by."""

    __slots__ = ("clean", "versions")

    def __init__(self, value: Value) -> None:
        self.versions: list[tuple[int, Value]] = [(BEFORE, value)]
        self.clean = BEFORE
        """A failed flush has marked all up to this operation as written."""

    def add(self, operation: int, value: Value) -> None:
        self.versions.append((operation, value))

    def flushed(self, began: int) -> bool:
        """A flush that began at `began` is done; whether it wrote anything of this cell."""
        newest = max(index for index, (made, _) in enumerate(self.versions) if index == 0 or made < began)
        if self.versions[newest][0] <= self.clean or newest == 0:
            return False
        del self.versions[:newest]
        self.versions[0] = (BEFORE, self.versions[0][1])
        return True

    def lost(self, began: int) -> None:
        """A flush that began at `began` has failed."""
        self.clean = max(self.clean, began - 1)

    @property
    def settled(self) -> bool:
        return len(self.versions) == 1


class _FileHistory:
    """One file: its cache, what is surely on disk, and its cells in doubt."""

    def __init__(self, content: bytes, mode: int, sector: int) -> None:
        self.mode = mode
        self.sector = sector
        self.cache = bytearray(content)
        self.settled = bytearray(content)
        """Where no sector is in doubt. It may be longer than the file: what was cut off still lies on the disk."""
        self.sectors: dict[int, _History] = {}
        self.size = _History(len(content))

    def on_disk(self, sector: int) -> bytes:
        return bytes(self.settled[sector * self.sector : (sector + 1) * self.sector]).ljust(self.sector, b"\0")

    def touch(self, operation: int, start: int, end: int) -> None:
        """The cache of bytes start to end has changed: a new version of their sectors."""
        for sector in range(start // self.sector, -(-end // self.sector)):
            history = self.sectors.get(sector)
            if history is None:
                history = self.sectors[sector] = _History(self.on_disk(sector))
            content = bytes(self.cache[sector * self.sector : (sector + 1) * self.sector])
            history.add(operation, content.ljust(self.sector, b"\0"))

    def grow(self, operation: int, size: int) -> None:
        """New space: zeros, or until a flush the old bytes that lay there."""
        old = len(self.cache)
        self.cache.extend(bytes(size - old))
        known = max(len(self.settled), (max(self.sectors, default=-1) + 1) * self.sector)
        self.touch(operation, old, min(size, max(known, old + FRESH_SECTORS * self.sector)))

    def write(self, operation: int, offset: int, data: bytes) -> None:
        end = offset + len(data)
        old = len(self.cache)
        if offset > old:
            self.grow(operation, offset)
        self.cache[offset:end] = data
        self.touch(operation, offset, end)
        if end > old:
            self.size.add(operation, end)

    def resize(self, operation: int, size: int) -> None:
        if size < len(self.cache):
            del self.cache[size:]
        elif size > len(self.cache):
            self.grow(operation, size)
        self.size.add(operation, size)

    def flushed(self, began: int) -> None:
        reach = 0
        for sector, history in list(self.sectors.items()):
            if not history.flushed(began):
                continue
            reach = max(reach, (sector + 1) * self.sector)
            if history.settled:
                content = history.versions[0][1]
                assert isinstance(content, bytes)
                start = sector * self.sector
                if start > len(self.settled):
                    self.settled.extend(bytes(start - len(self.settled)))
                self.settled[start : start + self.sector] = content
                del self.sectors[sector]
        if not self.size.flushed(began):
            # Data that is on disk lies inside the file, even if an earlier flush lost the size.
            reach = min(reach, len(self.cache))
            self.size.versions = [(made, max(_number(size), reach)) for made, size in self.size.versions]

    def lost(self, began: int) -> None:
        for history in [*self.sectors.values(), self.size]:
            history.lost(began)


def _number(value: Value) -> int:
    assert isinstance(value, int)
    return value


# ---------------------------------------------------------------- the disk over time


class Replay:
    """The crash model of a disk, brought forward operation by operation."""

    def __init__(self, start: MemoryDisk, sector: int) -> None:
        if sector < WORD or sector % WORD:
            raise ValueError(f"a sector has a multiple of {WORD} bytes, not {sector}")
        self.sector = sector
        self.index = 0
        self.files: dict[int, _FileHistory] = {}
        self.names: dict[str, _History] = {}
        self.begun: dict[int, int] = {}
        for path, file in start.names.items():
            self.names[path] = _History(file.number)
            if file.number not in self.files:
                self.files[file.number] = _FileHistory(bytes(file.cache), file.mode, sector)

    def apply(self, operation: Operation) -> None:
        """Go on by one operation. O(bytes written)."""
        index = self.index
        match operation:
            case Write():
                self.files[operation.file].write(index, operation.offset, operation.data)
            case Resize():
                self.files[operation.file].resize(index, operation.size)
            case FlushBegin():
                self.begun[operation.flush] = index
            case FlushEnd():
                self.files[operation.file].flushed(self.begun.pop(operation.flush))
            case FlushFailed():
                self.files[operation.file].lost(self.begun.pop(operation.flush))
            case Create():
                self.files[operation.file] = _FileHistory(b"", operation.mode, self.sector)
                self._name(operation.path, operation.file)
            case Link():
                self._name(operation.target, operation.file)
            case Remove():
                self._name(operation.path, None)
            case FlushDirectory():
                for path, history in list(self.names.items()):
                    if os.path.dirname(path) == operation.directory:
                        history.flushed(index)
                        if history.versions == [(BEFORE, None)]:
                            del self.names[path]
        self.index += 1

    def _name(self, path: str, file: int | None) -> None:
        self.names.setdefault(path, _History(None)).add(self.index, file)

    def moment(self) -> Moment:
        """The legal states at this point. O(size of the files)."""
        cells = [Cell("name", path, tuple(history.versions)) for path, history in sorted(self.names.items())]
        reachable = {file for cell in cells for _, file in cell.versions if file is not None}
        files = {number: file for number, file in sorted(self.files.items()) if number in reachable}
        for number, file in files.items():
            cells.append(Cell("size", number, tuple(file.size.versions)))
            for sector, history in sorted(file.sectors.items()):
                cells.append(Cell("sector", (number, sector), tuple(history.versions)))
        settled = {number: (bytes(file.settled), file.mode) for number, file in files.items()}
        return Moment(self.index, self.sector, tuple(cells), settled)

    def page_cache(self) -> MemoryDisk:
        """The disk as the next process sees it while the power is on."""
        contents: dict[int, tuple[bytes | bytearray, int]] = {
            number: (file.cache, file.mode) for number, file in self.files.items()
        }
        names = {path: _number(file) for path, h in self.names.items() if (file := h.versions[-1][1]) is not None}
        return _disk(names, contents)


def _disk(names: dict[str, int], contents: dict[int, tuple[bytes | bytearray, int]]) -> MemoryDisk:
    disk = MemoryDisk()
    files = {number: MemoryFile(number, contents[number][1], contents[number][0]) for number in set(names.values())}
    disk.adopt({path: files[number] for path, number in names.items()})
    return disk


# ---------------------------------------------------------------- legal states

Choice = Sequence[int]
"""For each cell of a moment the index of a version."""


@dataclass(frozen=True, slots=True)
class Moment:
    """All states that the disk may have after a power cut between two operations.

    `index` operations were done; `settled` holds, by file number, the content
    where no cell is in doubt, and the mode.
    """

    index: int
    sector: int
    cells: tuple[Cell, ...]
    settled: dict[int, tuple[bytes, int]]

    def count(self) -> int:
        """How many choices there are (some may give equal disks). O(cells)."""
        return math.prod(len(cell.distinct) for cell in self.cells)

    def choices(self) -> Iterator[tuple[int, ...]]:
        """Every choice; `count` of them."""
        return itertools.product(*(cell.distinct for cell in self.cells))

    def build(self, choice: Choice, hostile: dict[int, bytes] | None = None) -> MemoryDisk:
        """The disk after this choice; `hostile` gives other bytes for the cells at these indices. O(bytes)."""
        names, sizes = self._names_and_sizes(choice)
        contents = {file: bytearray(self.settled[file][0]) for file in sizes}
        for file, sector, value in self._sectors(choice, sizes, hostile):
            content = contents[file]
            start = sector * self.sector
            if start > len(content):
                content.extend(bytes(start - len(content)))
            content[start : start + self.sector] = value
        for file, size in sizes.items():
            del contents[file][size:]
            contents[file].extend(bytes(size - len(contents[file])))
        return _disk(names, {file: (content, self.settled[file][1]) for file, content in contents.items()})

    def key(self, choice: Choice, hostile: dict[int, bytes] | None = None) -> tuple[object, ...]:
        """Equal for two choices that `build` equal disks, without building them. O(cells)."""
        names, sizes = self._names_and_sizes(choice)
        sectors = tuple(
            (file, sector, value[: sizes[file] - sector * self.sector])
            for file, sector, value in self._sectors(choice, sizes, hostile)
        )
        return tuple(names.items()), tuple(sizes.items()), sectors

    def _names_and_sizes(self, choice: Choice) -> tuple[dict[str, int], dict[int, int]]:
        """Which file each name leads to, and the size of each file that has a name."""
        names: dict[str, int] = {}
        sizes: dict[int, int] = {}
        for cell, version in zip(self.cells, choice, strict=True):
            match cell.where, cell.versions[version][1]:
                case str() as path, int() as file:
                    names[path] = file
                case int() as file, int() as size:
                    sizes[file] = size
        linked = set(names.values())
        return names, {file: size for file, size in sizes.items() if file in linked}

    def _sectors(
        self, choice: Choice, sizes: dict[int, int], hostile: dict[int, bytes] | None
    ) -> Iterator[tuple[int, int, bytes]]:
        """File, sector and bytes of the sectors in doubt that lie inside files of these sizes."""
        for index, (cell, version) in enumerate(zip(self.cells, choice, strict=True)):
            if isinstance(cell.where, tuple):
                file, sector = cell.where
                if sector * self.sector < sizes.get(file, 0):
                    value = (hostile or {}).get(index, cell.versions[version][1])
                    assert isinstance(value, bytes)
                    yield file, sector, value

    def choose(self, strategy: str, rng: random.Random) -> tuple[int, ...]:
        """A choice by a strategy of `STRATEGIES`.  Raises `ValueError` for an unknown one."""
        try:
            choose = STRATEGIES[strategy]
        except KeyError:
            raise ValueError(f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}") from None
        return tuple(choose(self.cells, rng))

    def spoil(self, choice: Choice, kinds: Sequence[str], rng: random.Random) -> dict[int, bytes]:
        """Hostile bytes for some of the sectors in doubt, for `build`."""
        unknown = set(kinds) - set(HOSTILE)
        if unknown:
            raise ValueError(f"no hostile variant {sorted(unknown)}; there are {', '.join(HOSTILE)}")
        doubtful = [index for index, cell in enumerate(self.cells) if cell.kind == "sector"]
        if not doubtful or not kinds:
            return {}
        # Mostly few: among many spoiled sectors the interesting one does not stand alone.
        amount = min(len(doubtful), rng.choice((1, 1, 1, 2, 3, len(doubtful))))
        return {
            index: self._spoiled(self.cells[index], choice[index], rng.choice(kinds), rng)
            for index in rng.sample(doubtful, amount)
        }

    def _spoiled(self, cell: Cell, version: int, kind: str, rng: random.Random) -> bytes:
        if kind == "zeros":
            return bytes(self.sector)
        if kind == "garbage":
            return rng.randbytes(self.sector)
        chosen = cell.versions[version][1]
        other = cell.versions[rng.randrange(len(cell.versions))][1]
        assert isinstance(chosen, bytes)
        assert isinstance(other, bytes)
        # Each 8-byte word for itself, or a clean edge: both are seen on real media.
        if rng.choice((True, False)):
            edge = WORD * rng.randrange(self.sector // WORD + 1)
            return other[:edge] + chosen[edge:]
        words = (rng.choice((chosen, other))[at : at + WORD] for at in range(0, self.sector, WORD))
        return b"".join(words)


# ---------------------------------------------------------------- strategies


def _newest(cells: Sequence[Cell]) -> list[int]:
    return [len(cell.versions) - 1 for cell in cells]


def _up_to(cell: Cell, operation: int) -> int:
    """The newest version that was made before `operation`."""
    return max(index for index, (made, _) in enumerate(cell.versions) if index == 0 or made < operation)


def _operations(cells: Sequence[Cell]) -> list[int]:
    """The operations that made a version in doubt, oldest first."""
    return sorted({made for cell in cells for made, _ in cell.versions[1:]})


def _all(cells: Sequence[Cell], _rng: random.Random) -> list[int]:
    return _newest(cells)


def _none(cells: Sequence[Cell], _rng: random.Random) -> list[int]:
    return [0] * len(cells)


def _uniform(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    return [rng.randrange(len(cell.versions)) for cell in cells]


def _prefix(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    edge = rng.choice([*_operations(cells), _END])
    return [_up_to(cell, edge) for cell in cells]


def _suffix(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    edge = rng.choice([*_operations(cells), _END])
    return [last if cell.versions[last][0] >= edge else 0 for cell, last in zip(cells, _newest(cells), strict=True)]


def _all_but_one(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    choice = _newest(cells)
    operations = _operations(cells)
    if operations:
        missing = rng.choice(operations)
        for index, cell in enumerate(cells):
            if choice[index] and cell.versions[-1][0] == missing:  # what came later hides that it is missing
                choice[index] -= 1
    return choice


def _only_one(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    operations = _operations(cells)
    if not operations:
        return [0] * len(cells)
    alone = rng.choice(operations)
    return [
        next((index for index, (made, _) in enumerate(cell.versions) if index and made == alone), 0) for cell in cells
    ]


def _one_old_among_new(cells: Sequence[Cell], rng: random.Random) -> list[int]:
    choice = _newest(cells)
    doubtful = [index for index, cell in enumerate(cells) if len(cell.distinct) > 1]
    if doubtful:
        index = rng.choice(doubtful)
        choice[index] = rng.choice(cells[index].distinct[:-1])
    return choice


STRATEGIES: Final[dict[str, Callable[[Sequence[Cell], random.Random], list[int]]]] = {
    "none": _none,
    "all": _all,
    "uniform": _uniform,
    "prefix": _prefix,
    "suffix": _suffix,
    "all_but_one": _all_but_one,
    "only_one": _only_one,
    "one_old_among_new": _one_old_among_new,
}
"""Ways to choose what survives.

none: nothing since the last flush; all: everything; uniform: each cell for
itself; prefix: the first stores; suffix: the last ones; all_but_one: all but one
store; only_one: one store; one_old_among_new: all but one single sector, size or name.
"""
