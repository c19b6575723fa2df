"""The lines of an input, counted, so that reading can go on where it was interrupted.

A `Position` says how much of an input is done: bytes, lines, and the CRC-32C
of those bytes.  Who goes on later reads them again and compares the checksum:
an input that has grown, or was mended further down, goes on; one that differs
in what is done already is refused.

    |---- done: offset, lines, checksum ----|---- taken since ----|---- to come ...
                                            ^ settle(lines) moves this to the right
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from cowdb.checksum import crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["LONGEST", "START", "BadInputError", "Lines", "OnBad", "Position", "stop_at_once"]

LONGEST: Final = 1 << 31
"""Bytes of the longest line that is taken: what has no end of line at all shall not fill the memory."""

_CHUNK: Final = 1 << 20


class BadInputError(ValueError):
    """One entry of an input is wrong; `line` says where, `start` in which line what it belongs to begins."""

    def __init__(self, line: int, reason: str, start: int | None = None) -> None:
        super().__init__(line, reason, start)
        self.line = line
        self.reason = reason
        self.start = line if start is None else start

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


OnBad = Callable[[BadInputError], None]
"""Is told of each bad entry: it raises to stop, or returns to go on with the next."""


def stop_at_once(bad: BadInputError) -> None:
    """The strictest way to take a bad entry."""
    raise bad


class Position(NamedTuple):
    """How much of an input is done."""

    offset: int
    lines: int
    checksum: int


START: Final = Position(0, 0, 0)


class Lines:
    """An iterator over the lines of a binary file, each with its end of line."""

    def __init__(self, file: BinaryIO, position: Position = START) -> None:
        """Begin after `position`, once the bytes before it prove to be the same; `ValueError` if they are not.

        `file` stands at its beginning; it need not be able to seek.  O(position.offset), at the speed of a checksum.
        """
        self._file = file
        self._done = position
        self._taken: list[bytes] = []
        left, checksum = position.offset, 0
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                break
            checksum = crc32c(chunk, checksum)
            left -= len(chunk)
        if left or checksum != position.checksum:
            raise ValueError("its beginning is not what it was")
        self._next = iter(partial(file.readline, LONGEST), b"")

    @property
    def number(self) -> int:
        """The number of the line that was taken last, 1 for the first."""
        return self._done.lines + len(self._taken)

    @property
    def done(self) -> Position:
        """What `settle` said last."""
        return self._done

    @property
    def offset(self) -> int:
        """Bytes taken so far. O(lines taken since `settle`)."""
        return self._done.offset + sum(map(len, self._taken))

    def __iter__(self) -> Iterator[bytes]:
        """The lines that are left."""
        take = self._taken.append
        for line in self._next:
            take(line)
            if len(line) >= LONGEST and not line.endswith(b"\n"):
                raise BadInputError(self.number, f"it has more than {LONGEST} bytes")
            yield line

    def settle(self, lines: int | None = None) -> Position:
        """All that was taken, or the first `lines` lines of the input, are done. O(bytes since the last call)."""
        taken = self._taken
        count = len(taken) if lines is None else max(0, min(lines - self._done.lines, len(taken)))
        done = b"".join(taken[:count])
        del taken[:count]
        self._done = Position(
            self._done.offset + len(done), self._done.lines + count, crc32c(done, self._done.checksum)
        )
        return self._done
