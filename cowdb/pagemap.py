"""A map of the pages of a file: which were reached, one byte a page.

A damaged file can claim 2**48 pages.  So the map is made in chunks, where a
page is marked, and nothing here takes time or memory by the size of a claim:

    claim   2 .......................................................... 2**48
    chunks      [####......]          [##########]

`mark` is O(length); it is for pages that the file really has.  The searches
are O(chunks made), whatever the range.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PageMap"]

CHUNK_BITS: Final = 12
CHUNK: Final = 1 << CHUNK_BITS


class PageMap:
    """One byte a page: 0, or what it was marked with."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def get(self, page: int) -> int:
        """The mark of a page, 0 if it has none. O(1)."""
        chunk = self._chunks.get(page >> CHUNK_BITS)
        return 0 if chunk is None else chunk[page & CHUNK - 1]

    def mark(self, start: int, length: int, value: int) -> None:
        """Mark `length` pages from `start` with `value`, 1 to 255. O(length)."""
        for index, low, high in self._pieces(start, start + length):
            chunk = self._chunks.get(index)
            if chunk is None:
                chunk = self._chunks[index] = bytearray(CHUNK)
            chunk[low:high] = bytes((value,)) * (high - low)

    def take(self, page: int, value: int) -> bool:
        """Mark a page with `value`, 1 to 255, unless it has a mark; whether it had none. O(1)."""
        chunk = self._chunks.get(page >> CHUNK_BITS)
        if chunk is None:
            chunk = self._chunks[page >> CHUNK_BITS] = bytearray(CHUNK)
        elif chunk[page & CHUNK - 1]:
            return False
        chunk[page & CHUNK - 1] = value
        return True

    def first_marked(self, start: int, stop: int) -> int:
        """The first page of start <= page < stop that is marked, else `stop`. O(chunks made)."""
        for index in self._indexes(start, stop):
            low = max(start - (index << CHUNK_BITS), 0)
            part = self._chunks[index][low : stop - (index << CHUNK_BITS)]
            rest = part.lstrip(b"\0")
            if rest:
                return (index << CHUNK_BITS) + low + len(part) - len(rest)
        return stop

    def first_unmarked(self, start: int, stop: int) -> int:
        """The first page of start <= page < stop that is not marked, else `stop`. O(chunks made)."""
        for index, low, high in self._pieces(start, stop):
            chunk = self._chunks.get(index)
            where = low if chunk is None else chunk.find(0, low, high)
            if where >= 0:
                return (index << CHUNK_BITS) + where
        return stop

    def _indexes(self, start: int, stop: int) -> Iterator[int]:
        """The chunks that there are between two pages, in order."""
        low, high = start >> CHUNK_BITS, (stop - 1 >> CHUNK_BITS) + 1
        if high - low <= len(self._chunks):
            return (index for index in range(low, high) if index in self._chunks)
        order = sorted(self._chunks)
        return iter(order[bisect_left(order, low) : bisect_left(order, high)])

    @staticmethod
    def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The range start to stop, cut at chunks: (chunk, low, high)."""
        while start < stop:
            index, low = start >> CHUNK_BITS, start & CHUNK - 1
            high = min(CHUNK, low + stop - start)
            yield index, low, high
            start += high - low
