"""Which pages are free: the twin of `cowdb.freelist.FreeList`.

Runs that are ready lie in two arrays, sorted ones and fresh ones; those that are held in one for each snapshot that
holds them back.  What takes memory comes before what changes anything where that can be; a list that was changed all
the same and ran out of memory is loaded anew by the next transaction (`Draft.allotted`).
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
        found: list = []
        place: cython.Py_ssize_t
        for place in range(first, self.count):
            found.append((self.at[place].start, self.at[place].length, 0, 0))
        return found


@cython.final
@cython.cclass
class Held:
    """An array of runs that one snapshot holds back, in the order in which they came."""

    at: cython.pointer[HeldRun]
    count: cython.Py_ssize_t
    room: cython.Py_ssize_t

    def __dealloc__(self):
        PyMem_Free(self.at)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def append(self, start: u64, length: u64, birth: u64, freed: u64) -> cython.int:
        room: cython.Py_ssize_t
        if self.count == self.room:
            room = 2 * self.room + 4
            at = cython.cast(cython.pointer[HeldRun], PyMem_Realloc(self.at, room * cython.sizeof(HeldRun)))
            if at == cython.NULL:
                raise MemoryError
            self.at = at
            self.room = room
        run: cython.pointer[HeldRun] = self.at + self.count
        run.start = start
        run.length = length
        run.birth = birth
        run.freed = freed
        self.count += 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def write(self, at: Bytes) -> Bytes:
        """Put them there, as they are carried; where the next ones go."""
        place: cython.Py_ssize_t
        for place in range(self.count):
            put64(at, self.at[place].start)
            put64(at + 8, self.at[place].length)
            put64(at + 16, self.at[place].birth)
            put64(at + 24, self.at[place].freed)
            at += RUN_SIZE
        return at

    @cython.cfunc
    def listed(self) -> list:
        """Those, as they are carried."""
        found: list = []
        run: HeldRun
        place: cython.Py_ssize_t
        for place in range(self.count):
            run = self.at[place]
            found.append((run.start, run.length, run.birth, run.freed))
        return found


@cython.final
@cython.cclass
class FreeList:
    """The free runs that are in memory; see `cowdb.freelist.FreeList`."""

    held_runs = cython.declare(cython.Py_ssize_t, visibility="readonly")
    ready_pages = cython.declare(cython.longlong, visibility="readonly")
    held_pages = cython.declare(cython.longlong, visibility="readonly")
    _held: dict  # blocker -> Held
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
        start: u64
        length: u64
        birth: u64
        freed: u64
        start, length, birth, freed = run
        self.take_in(start, length, birth, freed, live)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take_in(self, start: u64, length: u64, birth: u64, freed: u64, live: list) -> cython.int:
        blocker = first_from(live, birth)
        seen: u64 = freed if blocker is None else blocker
        if seen >= freed:
            if self._fresh.count > FRESH and self._fresh.count > self._sorted.count:
                self.sort_in()
            self._fresh.reserve(1)
            self._fresh.append(start, length)
            self.ready_pages += length
            return 0
        # The oldest blocker is the one that is likely to stay longest.
        held: Held = self._held.get(blocker)
        if held is None:
            held = Held()
            held.append(start, length, birth, freed)
            self._held[blocker] = held
        else:
            held.append(start, length, birth, freed)
        self.held_runs += 1
        self.held_pages += length
        return 0

    @cython.ccall
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
                self.take_in(start, length, birth, transaction, live)
            start, length, birth = following, pages, born
        self.take_in(start, length, birth, transaction, live)
        freed.clear()

    @cython.ccall
    def settle(self, live: list) -> None:
        """Look again at the runs whose blocker is gone. O(those runs)."""
        if not self._held:
            return
        gone: list = []
        for blocker in self._held:
            if first_from(live, blocker) != blocker:
                gone.append(blocker)
        gone.sort()
        held: Held
        run: HeldRun
        place: cython.Py_ssize_t
        for blocker in gone:
            held = self._held.pop(blocker)
            for place in range(held.count):
                run = held.at[place]
                self.held_runs -= 1
                self.held_pages -= run.length
                self.take_in(run.start, run.length, run.birth, run.freed, live)

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

    @cython.ccall
    def take(self, pages: cython.longlong) -> list:
        """Up to `pages` ready pages from the lowest addresses, as runs. O(runs taken · log n)."""
        taken: list = []
        self.take_lowest(pages, taken, cython.NULL)
        return taken

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def take_lowest(self, pages: cython.longlong, taken: list | None, numbers: cython.pointer[u64]) -> cython.longlong:
        """Put the lowest ready pages into `taken`, as runs, or `numbers`, each; how many of `pages` there were not."""
        runs: Runs = self.lowest()
        run: cython.pointer[Run]
        part: cython.longlong
        page: cython.longlong
        done: cython.Py_ssize_t = 0
        while done < runs.count and pages > 0:
            run = runs.at + done
            part = min(cython.cast(cython.longlong, run.length), pages)
            if numbers == cython.NULL:
                taken.append((run.start, part))
            else:
                for page in range(part):
                    numbers[page] = run.start + page
                numbers += part
            pages -= part
            self.ready_pages -= part
            if part < cython.cast(cython.longlong, run.length):
                run.start += part
                run.length -= part
                break
            done += 1
        runs.drop(done)
        return pages

    @cython.cfunc
    def lowest(self) -> Runs:
        """The ready runs that are taken first, sorted."""
        if self._sorted.count:
            self.sort_in()
            return self._sorted
        # The usual case of small commits: what the one before freed is all that is ready.
        sort_runs(self._fresh.at, self._fresh.count)
        return self._fresh

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def runs_after(self, pages: cython.longlong) -> cython.Py_ssize_t:
        """How many runs there will be when `take` has taken so many pages. O(n log n)."""
        runs: Runs = self.lowest()
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

    @cython.ccall
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

    @cython.cfunc
    def held_in_order(self) -> list:
        """The arrays of held runs, the oldest blocker first."""
        found: list = []
        for blocker in sorted(self._held):
            found.append(self._held[blocker])
        return found

    def runs(self) -> list:
        """Every run, for the carry list. O(n)."""
        found: list = self._sorted.listed(0) + self._fresh.listed(0)
        held: Held
        for held in self.held_in_order():
            found += held.listed()
        return found

    def carry(self) -> bytes:
        """The same as it lies in the meta page. O(n)."""
        count: cython.Py_ssize_t = self._sorted.count + self._fresh.count
        arrays: list = self.held_in_order()
        held: Held
        for held in arrays:
            count += held.count
        raw: bytes = PyBytes_FromStringAndSize(cython.NULL, RUN_SIZE * count)
        at: Bytes = self._fresh.write(self._sorted.write(bytes_at(raw)))
        for held in arrays:
            at = held.write(at)
        return raw

    def spill(self, keep: cython.Py_ssize_t) -> list:
        """Take all but about `keep` runs out, to be moved to the free tree; see the twin. O(n log n)."""
        self.sort_in()
        runs: Runs = self._sorted
        held: list = []
        array: Held
        for array in self.held_in_order():
            held += array.listed()
        held.sort(key=FREED)
        stays: cython.Py_ssize_t = min(runs.count, max(keep // 2, keep - len(held)))
        moved: list = runs.listed(stays)
        place: cython.Py_ssize_t
        oldest: cython.Py_ssize_t = max(0, len(held) - (keep - stays))
        gone: set = set(held[:oldest])
        left: dict = {}
        rest: Held
        for blocker in self._held:
            array = self._held[blocker]
            rest = Held()
            for run in array.listed():
                if run not in gone:
                    rest.append(run[0], run[1], run[2], run[3])
            if rest.count:
                left[blocker] = rest
        taken: list = held[:oldest] + moved
        for place in range(stays, runs.count):
            self.ready_pages -= runs.at[place].length
        runs.count = stays
        self._held = left
        self.held_runs -= oldest
        for run in gone:
            self.held_pages -= run[1]
        return taken


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
