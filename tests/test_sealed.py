"""Pages that wait to be written come out as runs of neighbours."""

from __future__ import annotations

import gc
import itertools

from hypothesis import given
from hypothesis import strategies as st

from cowdb.sealed import Sealed

SIZE = 64


def laid_out(lengths, gaps):
    """Parts with their page numbers: one page each, or a run in several buffers."""
    number, found = 2, []
    for place, (length, gap) in enumerate(zip(lengths, gaps, strict=True)):
        number += gap
        raw = bytes([place]) * length * SIZE
        found.append((number, raw if length == 1 else (raw[:5], raw[5:])))
        number += length
    return found


@given(st.data())
def test_runs_are_what_was_added_in_order_and_as_long_as_can_be(data):
    lengths = data.draw(st.lists(st.integers(1, 3), max_size=12))
    found = laid_out(lengths, data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths))))
    sealed = Sealed()
    for number, part in data.draw(st.permutations(found)):
        sealed.add(number, part)
    runs = list(sealed.runs(SIZE))
    pages = {}
    for start, count, buffers in runs:
        raw = b"".join(buffers)
        assert len(raw) == count * SIZE
        pages.update({start + place: raw[place * SIZE : (place + 1) * SIZE] for place in range(count)})
    expected = {}
    for number, part in found:
        raw = part if isinstance(part, bytes) else b"".join(part)
        expected.update({number + place: raw[place * SIZE : (place + 1) * SIZE] for place in range(len(raw) // SIZE)})
    assert pages == expected
    assert all(start + count < after for (start, count, _), (after, _, _) in itertools.pairwise(runs))


def test_nothing_has_no_runs():
    assert list(Sealed().runs(SIZE)) == []


def test_pages_are_nothing_that_the_garbage_collector_counts():
    """The story: with a tuple and a list for each page, a large commit ran it a hundred times."""
    sealed = Sealed()
    page = bytes(SIZE)
    gc.disable()
    try:
        before = gc.get_count()[0]
        for number in range(1000, 6000):
            sealed.add(number, page)
        assert gc.get_count()[0] - before < 100
    finally:
        gc.enable()
