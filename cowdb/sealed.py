"""Pages that have their number and checksum, on their way from the writer to the storage.

    seal     leaf 7, leaf 9, branch 8  -->  numbers [7, 9, 8]   parts [..., ..., ...]
    write    runs                      -->  7: three pages in one call

Two lists stand for the pages, and no pair for each.  Python's garbage collector
runs whenever so many containers more were made than freed; in a transaction of
20,000 pages that was a hundred times, and a tenth of what its commit took.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.storage import Storage

__all__ = ["Sealed", "write_page", "write_sealed"]


class Sealed:
    """What a commit has to write.

    From page `numbers[i]` on `parts[i]` is written: a buffer of one page, or a
    tuple of several buffers, which are a run of pages together.
    """

    __slots__ = ("numbers", "parts")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.parts: list[Any] = []

    def add(self, number: int, part: Any) -> None:
        """One page more, or one run."""
        self.numbers.append(number)
        self.parts.append(part)

    def runs(self, page_size: int) -> Iterator[tuple[int, int, list[Any]]]:
        """Runs of neighbours, ascending: the first page, how many there are, and their buffers. O(n log n)."""
        numbers, parts = self.numbers, self.parts
        start = end = -1  # of the pages in `buffers`
        buffers: list[Any] = []
        for place in sorted(range(len(numbers)), key=numbers.__getitem__):
            number, part = numbers[place], parts[place]
            if number != end:
                if buffers:
                    yield start, end - start, buffers
                start = number
                buffers = []
            if type(part) is tuple:
                buffers += part
                end = number + sum(map(len, part)) // page_size
            else:
                buffers.append(part)
                end = number + 1
        if buffers:
            yield start, end - start, buffers


def write_sealed(storage: Storage, sealed: Sealed, page_size: int, *, flushed: bool) -> int:  # noqa: ARG001
    """Write what was sealed, neighbours in one call; how many pages that was. O(n log n).

    `flushed`: a flush will follow, so that the twin has the disk begin before all is written.
    """
    written = 0
    for start, pages, buffers in sealed.runs(page_size):
        storage.write(start * page_size, buffers)
        written += pages
    return written


def write_page(storage: Storage, number: int, raw: bytes) -> None:
    """Write one page. O(page size)."""
    storage.write(number * len(raw), [raw])
