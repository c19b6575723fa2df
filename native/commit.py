"""Steps 2 and 3 of a commit that is as most are: the main tree alone has changed, and its pages find room.

It is what `cowdb.pager` does for every commit, in the same order and with the same outcome, by calls that Python does
not see.  What is not usual is left to it: None, and nothing that matters has changed.
"""

from __future__ import annotations

from native.draft import *
from native.freelist import *
from native.sealing import *


def seal_usual(draft: Draft, free: FreeList, live: list, room: cython.Py_ssize_t, sealed):
    """Seal and number the draft's pages; the main tree's descriptor and the page count, or None if it is unusual.

    `room` is how many free runs may stay where they are: with more, the free tree changes too.
    """
    if not draft.plain():
        return None
    main: Writer = draft.main
    changes: Changes = main.changes
    if main.large:
        return None
    free.settle(live)
    free.release(changes.freed, changes.birth, live)
    pages: cython.Py_ssize_t = main.gather_all()
    if pages > free.ready_pages and draft.meta.free.depth or free.runs_after(pages) > room:
        return None
    end: u64 = draft.page_count
    short: cython.Py_ssize_t
    place: cython.Py_ssize_t
    memory: Scratch = Scratch(pages * cython.sizeof(u64))
    numbers = cython.cast(cython.pointer[u64], memory.at)
    short = free.take_lowest(pages, None, numbers)
    for place in range(short):
        numbers[pages - short + place] = end + place
    if main.changes_made:
        main.seal_as(numbers, None, sealed)
    return main.described(), free.take_tail(end + short)
