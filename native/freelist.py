"""Which pages are free: the twin of `cowdb.freelist.FreeList`.

Runs that are ready lie in two arrays, sorted ones and fresh ones; runs that are held stay Python's tuples, since they
go into the next meta page as they are.  What takes memory comes before what changes anything, so that a list without
memory is as it was.
"""

from __future__ import annotations

from operator import itemgetter

from native.memory import *

FREED = cython.declare(object, itemgetter(3))
FRESH = cython.declare(cython.Py_ssize_t, 32)


@cython.final
@cython.cclass
class Runs:
    """An array of ready runs, start and length."""

    at: cython.pointer[Run]
    count: cython.Py_ssize_t
    room: cython.Py_ssize_t

    def __dealloc__(self):
        PyMem_Free(self.at)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def reserve(self, more: cython.Py_ssize_t) -> cython.int:
        """Have room for `more` runs more."""
        if self.count + more <= self.room:
            return 0
        room: cython.Py_ssize_t = 2 * (self.count + more) + FRESH
        at = cython.cast(cython.pointer[Run], PyMem_Realloc(self.at, room * cython.sizeof(Run)))
        if at == cython.NULL:
            raise MemoryError
        self.at = at
        self.room = room
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def append(self, start: u64, length: u64) -> cython.void:
        """One more, for which there is room."""
        self.at[self.count].start = start
        self.at[self.count].length = length
        self.count += 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def remove(self, place: cython.Py_ssize_t) -> cython.void:
        self.count -= 1
        memmove(self.at + place, self.at + place + 1, (self.count - place) * cython.sizeof(Run))

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def drop(self, runs: cython.Py_ssize_t) -> cython.void:
        """Remove the first `runs` of them."""
        if runs:
            self.count -= runs
            memmove(self.at, self.at + runs, self.count * cython.sizeof(Run))

    @cython.cfunc
    @cython.exceptval(check=False)
    def write(self, at: Bytes) -> Bytes:
        """Put them there, as they are carried; where the next ones go."""
        place: cython.Py_ssize_t
        for place in range(self.count):
            put64(at, self.at[place].start)
            put64(at + 8, self.at[place].length)
            memset(at + 16, 0, 16)
            at += RUN_SIZE
        return at

    @cython.cfunc
    def listed(self, first: cython.Py_ssize_t) -> list:
        """Those from place `first` on, as they are carried: every snapshot lets them go."""
        return [(self.at[place].start, self.at[place].length, 0, 0) for place in range(first, self.count)]


@cython.cclass
class FreeList:
    """The free runs that are in memory; see `cowdb.freelist.FreeList`."""

    held_runs = cython.declare(cython.Py_ssize_t, visibility="readonly")
    ready_pages = cython.declare(cython.longlong, visibility="readonly")
    held_pages = cython.declare(cython.longlong, visibility="readonly")
    _held: dict  # blocker -> list of runs
    _sorted: Runs  # by address, none of them neighbours
    _fresh: Runs

    def __cinit__(self):
        self._held = {}
        self._sorted = Runs()
        self._fresh = Runs()

    def __len__(self):
        return self._sorted.count + self._fresh.count + self.held_runs

    # ------------------------------------------------------------ giving back

    def add(self, run: tuple, live: list) -> None:
        """Take in a run that was freed: ready if no live snapshot sees it. O(log n)."""
        self.take_in(run, live)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take_in(self, run: tuple, live: list) -> cython.int:
        birth: u64 = run[2]
        freed: u64 = run[3]
        blocker = first_from(live, birth)
        seen: u64 = freed if blocker is None else blocker
        length: u64 = run[1]
        if seen >= freed:
            if self._fresh.count > FRESH and self._fresh.count > self._sorted.count:
                self.sort_in()
            self._fresh.reserve(1)
            self._fresh.append(run[0], length)
            self.ready_pages += length
            return 0
        # The oldest blocker is the one that is likely to stay longest.
        held: list = self._held.get(blocker)
        if held is None:
            self._held[blocker] = held = []
        held.append(run)
        self.held_runs += 1
        self.held_pages += length
        return 0

    def release(self, freed: list, transaction: u64, live: list) -> None:
        """Take in runs (start, length, birth) that one transaction has freed, neighbours of one birth joined."""
        if not freed:
            return
        freed.sort()
        start: u64 = 0
        length: u64 = 0
        birth: u64 = 0
        following: u64
        pages: u64
        born: u64
        for entry in freed:
            following, pages, born = entry
            if length and start + length == following and birth == born:
                length += pages
                continue
            if length:
                self.take_in((start, length, birth, transaction), live)
            start, length, birth = following, pages, born
        self.take_in((start, length, birth, transaction), live)
        freed.clear()

    def settle(self, live: list) -> None:
        """Look again at the runs whose blocker is gone. O(those runs)."""
        if not self._held:
            return
        gone: list = [blocker for blocker in self._held if first_from(live, blocker) != blocker]
        gone.sort()
        for blocker in gone:
            for run in self._held.pop(blocker):
                self.held_runs -= 1
                self.held_pages -= run[1]
                self.take_in(run, live)

    def blockers(self):
        """The snapshots that hold runs back."""
        return set(self._held)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def sort_in(self) -> cython.int:
        """Put the fresh runs where they belong, and join neighbours."""
        fresh: Runs = self._fresh
        if not fresh.count:
            return 0
        old: Runs = self._sorted
        merged: Runs = Runs()
        merged.reserve(old.count + fresh.count)
        sort_runs(fresh.at, fresh.count)
        a: cython.Py_ssize_t = 0
        b: cython.Py_ssize_t = 0
        run: Run
        last: cython.pointer[Run]
        while a < old.count or b < fresh.count:
            if b == fresh.count or a < old.count and old.at[a].start <= fresh.at[b].start:
                run = old.at[a]
                a += 1
            else:
                run = fresh.at[b]
                b += 1
            if merged.count:
                last = merged.at + merged.count - 1
                if last.start + last.length > run.start:
                    raise CorruptionError(run.start, "the free list names it twice (I5)")
                if last.start + last.length == run.start:
                    last.length += run.length
                    continue
            merged.append(run.start, run.length)
        self._sorted = merged
        fresh.count = 0
        return 0

    # ------------------------------------------------------------ taking

    def take(self, pages: cython.longlong) -> list:
        """Up to `pages` ready pages from the lowest addresses, as runs. O(runs taken · log n)."""
        taken: list = []
        if self._sorted.count:
            self.sort_in()
        # Else the usual case of small commits: what the one before freed is all that is ready.
        runs: Runs = self._sorted if self._sorted.count else self._fresh
        sort_runs(self._fresh.at, self._fresh.count)
        run: cython.pointer[Run]
        part: cython.longlong
        done: cython.Py_ssize_t = 0
        while done < runs.count and pages > 0:
            run = runs.at + done
            part = min(cython.cast(cython.longlong, run.length), pages)
            taken.append((run.start, part))
            pages -= part
            self.ready_pages -= part
            if part < cython.cast(cython.longlong, run.length):
                run.start += part
                run.length -= part
                break
            done += 1
        runs.drop(done)
        return taken

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def runs_after(self, pages: cython.longlong) -> cython.Py_ssize_t:
        """How many runs there will be when `take` has taken so many pages. O(n log n)."""
        if self._sorted.count:
            self.sort_in()  # as `take` does
        runs: Runs = self._sorted if self._sorted.count else self._fresh
        sort_runs(self._fresh.at, self._fresh.count)
        done: cython.Py_ssize_t = 0
        while done < runs.count and pages >= cython.cast(cython.longlong, runs.at[done].length):
            pages -= runs.at[done].length
            done += 1
        return self._sorted.count + self._fresh.count + self.held_runs - done

    def take_run(self, pages: cython.longlong):
        """The start of a ready run of `pages` pages, best fit; None if there is none. O(n)."""
        if pages == 1:
            single: list = self.take(1)
            return single[0][0] if single else None
        self.sort_in()
        runs: Runs = self._sorted
        wanted: u64 = pages
        best: cython.Py_ssize_t = -1
        place: cython.Py_ssize_t
        for place in range(runs.count):
            if runs.at[place].length >= wanted and (best < 0 or runs.at[place].length < runs.at[best].length):
                best = place
        if best < 0:
            return None
        start: u64 = runs.at[best].start
        if runs.at[best].length > wanted:
            runs.at[best].start += wanted
            runs.at[best].length -= wanted
        else:
            runs.remove(best)
        self.ready_pages -= pages
        return start

    def take_tail(self, page_count: u64):
        """Cut the ready run that ends at `page_count` off; the new page count. O(log n)."""
        fresh: Runs = self._fresh
        place: cython.Py_ssize_t
        for place in range(fresh.count):
            if fresh.at[place].start + fresh.at[place].length == page_count:
                self.sort_in()
                break
        runs: Runs = self._sorted
        if not runs.count:
            return page_count
        last: cython.pointer[Run] = runs.at + runs.count - 1
        if last.start + last.length != page_count:
            return page_count
        self.ready_pages -= last.length
        runs.count -= 1
        return last.start

    # ------------------------------------------------------------ saving

    def runs(self) -> list:
        """Every run, for the carry list. O(n)."""
        found: list = self._sorted.listed(0) + self._fresh.listed(0)
        if self._held:
            for blocker in sorted(self._held):
                found += self._held[blocker]
        return found

    def carry(self) -> bytes:
        """The same as it lies in the meta page. O(n)."""
        count: cython.Py_ssize_t = self._sorted.count + self._fresh.count
        raw: bytes = PyBytes_FromStringAndSize(cython.NULL, RUN_SIZE * (count + self.held_runs))
        at: Bytes = self._fresh.write(self._sorted.write(bytes_at(raw)))
        end: Bytes = bytes_at(raw) + PyBytes_GET_SIZE(raw)
        run: tuple
        if self._held:
            for blocker in sorted(self._held):
                for run in self._held[blocker]:
                    if at == end:
                        raise RuntimeError("the free list has more runs than it counts")
                    put64(at, run[0])
                    put64(at + 8, run[1])
                    put64(at + 16, run[2])
                    put64(at + 24, run[3])
                    at += RUN_SIZE
        if at != end:
            raise RuntimeError("the free list has fewer runs than it counts")
        return raw

    def spill(self, keep: cython.Py_ssize_t) -> list:
        """Take all but about `keep` runs out, to be moved to the free tree; see the twin. O(n log n)."""
        self.sort_in()
        runs: Runs = self._sorted
        held: list = [run for blocker in sorted(self._held) for run in self._held[blocker]]
        held.sort(key=FREED)
        stays: cython.Py_ssize_t = min(runs.count, max(keep // 2, keep - len(held)))
        moved: list = runs.listed(stays)
        place: cython.Py_ssize_t
        oldest: cython.Py_ssize_t = max(0, len(held) - (keep - stays))
        gone: set = set(held[:oldest])
        left: dict = {}
        for blocker in self._held:
            rest: list = [run for run in self._held[blocker] if run not in gone]
            if rest:
                left[blocker] = rest
        for place in range(stays, runs.count):
            self.ready_pages -= runs.at[place].length
        runs.count = stays
        self._held = left
        self.held_runs -= oldest
        for run in gone:
            self.held_pages -= run[1]
        return held[:oldest] + moved


@cython.cfunc
def first_from(live: list, birth: u64):
    """The first of the ascending `live` that is not below `birth`; None if there is none."""
    low: cython.Py_ssize_t = 0
    high: cython.Py_ssize_t = PyList_GET_SIZE(live)
    middle: cython.Py_ssize_t
    one: u64
    while low < high:
        middle = (low + high) // 2
        one = live[middle]
        if one < birth:
            low = middle + 1
        else:
            high = middle
    return live[low] if low < PyList_GET_SIZE(live) else None
