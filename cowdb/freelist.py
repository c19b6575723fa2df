"""Which pages are free, and for whom.

A page that transaction f frees, and that was born in transaction b, is seen by
the snapshots s with b <= s < f and by no other.  It may be used again when no
live snapshot lies in [birth, freed) (I2); once that is so it stays so, because
new snapshots are never older than f.

    transaction   1  2  3  4  5  6  7  8
    page          .  [born        freed)      may be reused in 8: a reader at 7
    readers          .              7  8      or at 1 cannot see it, one at 4 can

So a long reader pins only what it can see, not everything freed after it.

In memory a run is either *ready* (by address, to coalesce and to prefer low
addresses, and by length, for best fit; the newest ones are sorted in later) or *held* by one live snapshot, its
blocker.  On disk the young runs lie in the meta page (the carry list) and the
bulk in the free tree, whose records are read back oldest first, and only when
the ready runs are used up.  Nothing here costs more for a longer free list.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from sortedcontainers import SortedList

from cowdb import format as fmt
from cowdb.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowdb.meta import CarriedRun

__all__ = ["FreeList", "Run"]

Run = tuple[int, int]
"""A run of ready pages: start, length."""

_FRESH: Final = 32
"""Fresh runs that may wait to be sorted in, and as many as there are sorted ones."""
_FEW: Final = 8
"""Fresh runs that are joined one by one; more of them, and a sixteenth of what is sorted, are merged."""
_TWICE: Final = "the free list names it twice (I5)"
_KNOWN: Final = 0
"""Birth and freed of a run that every snapshot lets go."""


class FreeList:
    """The free runs that are in memory; see the module's text.

    `live` is always the sorted list of live snapshots (P6).  Ready runs are kept
    as the carry list has them.  Between two commits there are no more of them
    than it holds, so a sorted list of Python's is what takes the least time; moving
    its items, O(n) with little for each, is left out below.
    """

    def __init__(self) -> None:
        self._sorted: list[CarriedRun] = []  # the ready runs by address
        self._by_length: SortedList[Run] = SortedList()  # (length, start) of those that are longer than a page
        self._fresh: list[CarriedRun] = []  # ready runs in neither yet: they may be taken again at once
        self._held: dict[int, list[CarriedRun]] = {}  # blocker -> runs
        self.held_runs = 0
        self.ready_pages = 0
        self.held_pages = 0

    def __len__(self) -> int:
        """Number of runs, ready and held."""
        return len(self._sorted) + len(self._fresh) + self.held_runs

    # ------------------------------------------------------------ giving back

    def add(self, run: CarriedRun, live: list[int]) -> None:
        """Take in a run that was freed: ready if no live snapshot sees it. O(log n)."""
        self._take_in((run,), live)

    def release(self, freed: list[tuple[int, int, int]], transaction: int, live: list[int]) -> None:
        """Take in the runs (start, length, birth) that `transaction` has freed, and empty the list. O(n log n)."""
        if freed:
            self._take_in(coalesce(freed, transaction), live)
            freed.clear()

    def settle(self, live: list[int]) -> None:
        """Look again at the runs whose blocker is gone. O(those runs)."""
        if not self._held:
            return
        for blocker in sorted(self._held.keys() - live):
            runs = self._held.pop(blocker)
            self.held_runs -= len(runs)
            for run in runs:
                self.held_pages -= run[1]
            self._take_in(runs, live)

    def blockers(self) -> set[int]:
        """The snapshots that hold runs back."""
        return set(self._held)

    def _take_in(self, runs: Iterable[CarriedRun], live: list[int]) -> None:
        fresh = self._fresh
        most = max(_FRESH, len(self._sorted))
        for run in runs:
            start, length, birth, freed = run
            place = bisect_left(live, birth)
            if place == len(live) or live[place] >= freed:
                if len(fresh) > most:
                    self._sort_in()
                    fresh = self._fresh
                    most = max(_FRESH, len(self._sorted))
                fresh.append((start, length, _KNOWN, _KNOWN))
                self.ready_pages += length
            else:
                # The oldest blocker is the one that is likely to stay longest.
                self._held.setdefault(live[place], []).append(run)
                self.held_runs += 1
                self.held_pages += length

    def _sort_in(self) -> None:
        """Put the fresh runs where they belong by address and length."""
        fresh, self._fresh = self._fresh, []
        if len(fresh) > max(_FEW, len(self._sorted) // 16):
            self._merge(fresh)
        else:
            for run in fresh:
                self._join(run)

    def _join(self, run: CarriedRun) -> None:
        """Add a ready run and join it with its neighbours. O(log n)."""
        ready = self._sorted
        start, length, _, _ = run
        place = bisect_left(ready, run)
        if place < len(ready):
            after, after_length, _, _ = ready[place]
            if start + length > after:
                raise CorruptionError(after, _TWICE)
            if start + length == after:
                self._forget(place)
                length += after_length
        if place:
            before, before_length, _, _ = ready[place - 1]
            if before + before_length > start:
                raise CorruptionError(start, _TWICE)
            if before + before_length == start:
                place -= 1
                self._forget(place)
                start = before
                length += before_length
        ready.insert(place, (start, length, _KNOWN, _KNOWN))
        if length > 1:
            self._by_length.add((length, start))

    def _merge(self, fresh: list[CarriedRun]) -> None:
        """Add many ready runs, and join neighbours. O(n log n)."""
        joined: list[CarriedRun] = []
        end = -1
        for run in sorted(self._sorted + fresh):
            start, length, _, _ = run
            if start > end:
                joined.append(run)
            elif start == end:
                before, before_length, _, _ = joined[-1]
                joined[-1] = (before, before_length + length, _KNOWN, _KNOWN)
            else:
                raise CorruptionError(start, _TWICE)
            end = start + length
        self._sorted = joined
        self._by_length = SortedList((length, start) for start, length, _, _ in joined if length > 1)

    def _forget(self, place: int) -> None:
        """Take the ready run at `place` out."""
        start, length, _, _ = self._sorted.pop(place)
        if length > 1:
            self._by_length.remove((length, start))

    def _shorten(self, place: int, pages: int) -> None:
        """Take the first `pages` pages of the ready run at `place`, which is longer."""
        start, length, _, _ = self._sorted[place]
        self._by_length.remove((length, start))
        start += pages
        length -= pages
        self._sorted[place] = (start, length, _KNOWN, _KNOWN)
        if length > 1:
            self._by_length.add((length, start))

    # ------------------------------------------------------------ taking

    def take(self, pages: int) -> list[Run]:
        """Up to `pages` ready pages from the lowest addresses, as runs. O(runs taken · log n)."""
        taken: list[Run] = []
        if self._sorted:
            self._sort_in()
            ready = self._sorted
        else:
            # The usual case of small commits: what the one before freed is all that is ready.
            ready = self._fresh
            ready.sort()
        done = 0
        for start, length, _, _ in ready:
            if not pages:
                break
            part = min(length, pages)
            taken.append((start, part))
            pages -= part
            self.ready_pages -= part
            if part < length:
                if ready is self._fresh:
                    ready[done] = (start + part, length - part, _KNOWN, _KNOWN)
                else:
                    self._shorten(done, part)
                break
            if length > 1 and ready is not self._fresh:
                self._by_length.remove((length, start))
            done += 1
        del ready[:done]
        return taken

    def take_run(self, pages: int) -> int | None:
        """The start of a ready run of `pages` pages, best fit; None if there is none. O(log n)."""
        if pages == 1:
            single = self.take(1)
            return single[0][0] if single else None
        self._sort_in()
        fitting = self._by_length.bisect_left((pages, 0))
        if fitting == len(self._by_length):
            return None
        length, start = self._by_length[fitting]
        place = bisect_left(self._sorted, (start, length, _KNOWN, _KNOWN))
        if length > pages:
            self._shorten(place, pages)
        else:
            self._forget(place)
        self.ready_pages -= pages
        return int(start)

    def take_tail(self, page_count: int) -> int:
        """Cut the ready run that ends at `page_count` off; the new page count. O(log n)."""
        if self._fresh:
            start, length, _, _ = max(self._fresh)
            if start + length == page_count:
                self._sort_in()
        if self._sorted:
            start, length, _, _ = self._sorted[-1]
            if start + length == page_count:
                self._forget(len(self._sorted) - 1)
                self.ready_pages -= length
                return start
        return page_count

    # ------------------------------------------------------------ saving

    def runs(self) -> list[CarriedRun]:
        """Every run, for the carry list. O(n)."""
        found = self._sorted + self._fresh
        for blocker in sorted(self._held):
            found += self._held[blocker]
        return found

    def carry(self) -> bytes:
        """The same as it lies in the meta page. O(n)."""
        return fmt.pack_runs(self.runs())

    def spill(self, keep: int) -> list[CarriedRun]:
        """Take all but about `keep` runs out, to be moved to the free tree. O(n log n).

        What stays: half of `keep` are ready runs, low addresses first; the rest
        is the young end of the held runs.
        """
        self._sort_in()
        ready = self._sorted
        held = [run for blocker in sorted(self._held) for run in self._held[blocker]]
        held.sort(key=_freed)
        stays = min(len(ready), max(keep // 2, keep - len(held)))
        moved = ready[stays:]
        del ready[stays:]
        for start, length, _, _ in moved:
            self.ready_pages -= length
            if length > 1:
                self._by_length.remove((length, start))
        oldest = max(0, len(held) - (keep - stays))
        gone = set(held[:oldest])
        if gone:
            for blocker in list(self._held):
                rest = [run for run in self._held[blocker] if run not in gone]
                if rest:
                    self._held[blocker] = rest
                else:
                    del self._held[blocker]
            self.held_runs -= oldest
            self.held_pages -= sum(run[1] for run in gone)
        return held[:oldest] + moved


def _freed(run: CarriedRun) -> int:
    return run[3]


def coalesce(runs: Iterable[tuple[int, int, int]], freed: int) -> list[CarriedRun]:
    """Runs (start, length, birth) freed by one transaction, neighbours of the same birth joined. O(n log n)."""
    joined: list[CarriedRun] = []
    for start, length, birth in sorted(runs):
        if joined:
            last_start, last_length, last_birth, _ = joined[-1]
            if last_start + last_length == start and last_birth == birth:
                joined[-1] = (last_start, last_length + length, birth, freed)
                continue
        joined.append((start, length, birth, freed))
    return joined
