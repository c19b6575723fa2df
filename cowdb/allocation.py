"""Where the pages of a commit go: numbers from the free list, and the free list into the file.

    1  what the draft freed joins the free list
    2  records are read back from the free tree, oldest first, if too little is ready
    3  every dirty page gets a number: the lowest ready ones, else new ones at the end
    4  if the carry list would overflow, its older part becomes records of the free tree

The free list in memory belongs to one state, the one that the next draft builds
on.  An abort forgets it, and it is loaded again from that state's meta.
"""

from __future__ import annotations

import errno
import itertools
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from cowdb import format as fmt
from cowdb.errors import CorruptionError, FullError
from cowdb.kernel import FreeList, Path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowdb.draft import Draft
    from cowdb.freelist import Run
    from cowdb.kernel import Writer
    from cowdb.meta import CarriedRun, Meta

__all__ = ["Allocator", "blocker", "spare_pages"]

_RECORDS_EXAMINED: Final = 16
_WRITTEN_WHOLE: Final = fmt.PAGE_SIZES[0]
"""Bytes of the page cache's pages, which a kill does not tear: 4096 nearly everywhere, and more elsewhere."""
_PATH_ROOM: Final = 16
"""Runs of the carry list that stay empty for the pages that saving the free list itself frees."""


class Allocator:
    """The free list of the state that the next draft builds on; see the module's text.

    `live` is always the sorted list of live transactions (P6).
    """

    def __init__(self, page_size: int, max_pages: int | None) -> None:
        self.page_size = page_size
        self.max_pages = max_pages
        self._capacity = fmt.carry_capacity(page_size), fmt.carry_capacity(_WRITTEN_WHOLE)  # durable, lazy
        self.base = -1  # the transaction whose free list it is
        self.free: FreeList | None = None
        self._scanned = b""  # key of the last free tree record that was looked at in vain
        self._scan_blockers: set[int] = set()
        self._dry = False  # all records were looked at in vain

    def load(self, meta: Meta, live: list[int]) -> None:
        """Take the free list that `meta` carries; another process may have written it. O(carried runs)."""
        free = FreeList()
        end = 0
        for run in sorted(meta.carried):
            if run[0] < end:
                raise CorruptionError(run[0], "the carry list names it twice (I5)")
            end = run[0] + run[1]
        for run in meta.carried:
            free.add(run, live)
        self.free = free
        self.base = meta.transaction
        self._scan_anew()

    def _scan_anew(self) -> None:
        self._scanned = b""
        self._scan_blockers = set()
        self._dry = False

    def release(self, draft: Draft, live: list[int]) -> None:
        """Take what the draft has freed so far into the free list. Its own state never sees those pages (I2)."""
        assert self.free is not None
        self.free.release(draft.changes.freed, draft.changes.birth, live)

    def allot(
        self, draft: Draft, writers: list[Writer], live: list[int], *, fetch: bool = True
    ) -> tuple[Iterator[int], dict[int, list[int]]]:
        """Numbers for every dirty page of `writers`, ascending, and starts of overflow runs by length."""
        assert self.free is not None
        single = 0
        lengths: list[int] = []
        for writer in writers:
            pages, runs = writer.dirty_pages()
            single += pages
            lengths += runs
        if fetch:
            # Reading records dirties pages of the free tree only, which are counted later.
            wanted = single + sum(lengths)
            if draft.changes.inserted and self.max_pages is not None:
                wanted += spare_pages(draft.page_count)
            self._fetch(draft, wanted, live)
        placed: dict[int, list[int]] = {}
        for length in sorted(lengths, reverse=True):
            start = self.free.take_run(length)
            if start is None:
                start = self._beyond(draft, length)
            placed.setdefault(length, []).append(start)
        short = single - self.free.ready_pages
        taken: list[Run] = self.free.take(single)
        if short > 0:
            taken.append((self._beyond(draft, short), short))
        numbers = itertools.chain.from_iterable([range(start, start + length) for start, length in taken])
        return numbers, placed

    def _beyond(self, draft: Draft, pages: int) -> int:
        """`pages` new pages at the end of what the file holds; `FullError` past `max_size`."""
        start = draft.page_count
        if self.max_pages is not None and start + pages > self.max_pages:
            raise FullError(
                errno.ENOSPC,
                f"the database would need {start + pages} pages, and max_size allows {self.max_pages}; the transaction "
                "was not committed; delete something, or open it with a larger max_size",
            )
        draft.page_count = start + pages
        return start

    def keep_spare(self, draft: Draft) -> None:
        """Refuse a transaction that put something in if it leaves too little below `max_size` to delete with.

        Deleting copies pages before it frees any, so it needs room itself.
        """
        if self.max_pages is None or not draft.changes.inserted:
            return
        assert self.free is not None
        left = self.free.ready_pages + self.max_pages - draft.page_count
        spare = spare_pages(draft.page_count)
        if left < spare:
            raise FullError(
                errno.ENOSPC,
                f"the database would leave {left} of its {self.max_pages} pages free, and keeps {spare} to delete "
                "with; the transaction was not committed; delete something, or open it with a larger max_size",
            )

    def _fetch(self, draft: Draft, wanted: int, live: list[int]) -> None:
        """Read records of the free tree, oldest first, until `wanted` pages are ready.

        Looks at a bounded number of records: a commit never pays for the length
        of the free list, unless the file may not grow any more.  Where the last
        search ended the next one goes on, until a snapshot that held something
        back has ended.
        """
        free = self.free
        assert free is not None
        if free.ready_pages >= wanted or not (draft.free_changed() or draft.meta.free.depth):
            return
        if not self._scan_blockers.issubset(live):
            self._scan_anew()
        if self._dry:
            return
        may_grow = self.max_pages is None or draft.page_count + wanted <= self.max_pages
        budget = _RECORDS_EXAMINED + (wanted - free.ready_pages) // 8 if may_grow else fmt.MAX_U48
        path = Path(draft.free)
        while free.ready_pages < wanted and budget:
            if not path.seek(self._scanned + b"\0" if self._scanned else b""):
                self._dry = True
                return
            budget -= 1
            key, value = draft.free.entry(path)
            runs = self._decode_record(draft.meta, key, value)
            blockers = {found for run in runs if (found := blocker(run, live)) is not None}
            if blockers and all(blocker(run, live) is not None for run in runs):
                self._scanned = key
                self._scan_blockers |= blockers
                continue
            draft.free.delete(key)
            for run in runs:
                free.add(run, live)

    def _decode_record(self, meta: Meta, key: bytes, value: bytes) -> list[CarriedRun]:
        """The runs of a free tree record, each field checked before it is used (I10)."""
        runs = fmt.unpack_runs(value[: len(value) // fmt.FREE_RUN.size * fmt.FREE_RUN.size])
        page_count = meta.page_count
        for start, length, birth, freed in runs:
            sound = fmt.FIRST_DATA_PAGE <= start < page_count and 1 <= length <= page_count - start and birth <= freed
            if not sound or freed > meta.transaction:
                raise CorruptionError(start, f"free tree record {key.hex()} names no sensible run")
        return runs

    def room(self, *, lazy: bool) -> int:
        """How many runs the carry list takes before its older part must move.

        A `lazy` meta is written where the last lazy one was, of which nothing else is
        on the disk.  So it stays within what the system writes whole: a process that
        is killed in the middle of the write must not take earlier commits along.
        """
        return self._capacity[lazy] - _PATH_ROOM

    def save(self, draft: Draft, live: list[int], *, lazy: bool = False) -> None:
        """If the carry list would overflow, move its older part to the free tree in one go.

        Records are appended at the right end, so this copies one path.  What it
        copies joins the carry list, of which half is empty then: no loop.
        """
        free = self.free
        assert free is not None
        self.release(draft, live)
        if len(free) <= self.room(lazy=lazy):
            return
        per_record = fmt.runs_per_record(self.page_size)
        moved = free.spill(self._capacity[lazy] // 2)
        self._dry = False
        for chunk, first in enumerate(range(0, len(moved), per_record)):
            part = moved[first : first + per_record]
            key = fmt.FREE_KEY_STRUCT.pack(draft.changes.birth, chunk)
            draft.free.put(key, fmt.pack_runs(part), append=True)
        self.release(draft, live)


def spare_pages(pages: int) -> int:
    """How many pages a database of `pages` pages keeps to delete with: paths, and records of what becomes free."""
    return min(32 + pages // 64, 4 + pages // 8)


def blocker(run: CarriedRun, live: list[int]) -> int | None:
    """The oldest live snapshot that sees the run; None if it may be used again (I2)."""
    _, _, birth, freed = run
    place = bisect_left(live, birth)
    return live[place] if place < len(live) and live[place] < freed else None
