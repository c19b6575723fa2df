"""The free list against a plain model of single pages, and what a reader pins in a real database (I2, I5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import database, numbered

from cowdb.errors import CorruptionError
from cowdb.freelist import coalesce
from cowdb.kernel import FreeList


def pages_of(runs):
    found = [page for start, length, *_ in runs for page in range(start, start + length)]
    assert len(found) == len(set(found)), "no page twice (I5)"
    return set(found)


def filled(*runs, live=()):
    free = FreeList()
    for run in runs:
        free.add(run if len(run) == 4 else (*run, 0, 0), list(live))
    return free


# ---------------------------------------------------------------- who may have it


@pytest.mark.parametrize(
    ("live", "held_by"),
    [
        ([], None),
        ([4], None),
        ([5], 5),
        ([7], 7),
        ([8], None),
        ([9], None),
        ([1, 4, 8, 30], None),
        ([1, 5, 7], 5),
        ([4, 7, 8], 7),
    ],
)
def test_a_run_born_in_5_and_freed_in_8_waits_for_those_who_see_it(live, held_by):
    free = filled((10, 3, 5, 8), live=live)
    assert free.blockers() == ({held_by} if held_by else set())
    assert (free.ready_pages, free.held_pages) == ((0, 3) if held_by else (3, 0))
    assert len(free) == 1
    assert free.take(9) == ([] if held_by else [(10, 3)])


def test_born_and_freed_in_one_transaction_is_ready_at_once():
    assert filled((10, 1, 5, 5), live=[4, 5, 6]).ready_pages == 1


def test_settle_looks_again_when_the_blocker_is_gone():
    free = filled((10, 2, 3, 9), (20, 2, 6, 9), (30, 2, 8, 9), live=[4, 7])
    assert free.blockers() == {4, 7}
    free.settle([4, 7])
    assert (free.ready_pages, free.held_pages, free.held_runs) == (2, 4, 2)
    free.settle([7, 12])
    assert free.blockers() == {7}, "the first run waits for the other reader now"
    assert (free.ready_pages, free.held_pages) == (2, 4)
    free.settle([12])
    assert (free.ready_pages, free.held_pages, free.held_runs) == (6, 0, 0)
    assert free.blockers() == set()


# ---------------------------------------------------------------- taking


def test_the_lowest_addresses_come_first():
    free = filled((30, 2), (10, 3), (20, 1))
    assert free.take(4) == [(10, 3), (20, 1)]
    assert free.take(1) == [(30, 1)]
    assert free.take(5) == [(31, 1)]
    assert free.take(5) == []
    assert free.ready_pages == len(free) == 0


def test_neighbours_are_joined():
    free = filled((10, 2), (14, 2), (12, 2), (30, 1))
    assert free.take_run(6) == 10
    assert free.take_run(2) is None
    assert free.take_run(1) == 30
    assert free.take_run(1) is None


def test_best_fit():
    free = filled((10, 9), (30, 4), (50, 5))
    assert free.take_run(5) == 50
    assert free.take_run(4) == 30
    assert free.take_run(2) == 10
    assert free.take_run(7) == 12
    assert free.take_run(2) is None


def test_the_tail_is_cut():
    free = filled((10, 2), (18, 2))
    assert free.take_tail(21) == 21
    assert free.take_tail(20) == 18
    assert free.take_tail(18) == 18
    assert free.take_tail(12) == 10
    assert free.take_tail(10) == 10
    assert free.ready_pages == 0
    free = filled((10, 2), (30, 2))
    assert free.take_run(2) == 10
    assert free.take_tail(32) == 30


@pytest.mark.parametrize("again", [(10, 1), (12, 5), (9, 2), (5, 20), (14, 1)])
def test_a_page_that_is_named_twice_is_corruption(again):
    with pytest.raises(CorruptionError, match="twice"):
        filled((10, 5), again).take_run(2)


def test_many_runs_are_sorted_in_as_they_come():
    free = filled(*((start, 1) for start in range(3000, 1000, -2)))
    assert len(free) == 1000
    assert free.take(3) == [(1002, 1), (1004, 1), (1006, 1)]
    assert pages_of(free.runs()) == set(range(1008, 3001, 2))


# ---------------------------------------------------------------- saving


def test_spill_keeps_low_ready_runs_and_young_held_ones():
    free = FreeList()
    for at in range(20):
        free.add((100 + 2 * at, 1, 0, 0), [5])
        free.add((200 + 2 * at, 1, 4, 10 + at), [5])
    moved = free.spill(10)
    kept = free.runs()
    assert len(kept) == len(free) == 10
    assert pages_of(moved) | pages_of(kept) == {*range(100, 140, 2), *range(200, 240, 2)}
    assert sorted(kept) == [
        *((100 + 2 * at, 1, 0, 0) for at in range(5)),
        *((200 + 2 * at, 1, 4, 10 + at) for at in range(15, 20)),
    ]
    assert (free.ready_pages, free.held_pages, free.held_runs) == (5, 5, 5)
    assert free.blockers() == {5}
    moved = free.spill(0)
    assert len(free) == free.ready_pages == free.held_pages == 0
    assert free.blockers() == set()
    assert len(moved) == 10


def test_spill_of_one_kind_alone_keeps_as_much():
    free = filled(*((start, 1) for start in range(0, 40, 2)))
    assert len(free.spill(10)) == 10
    assert sorted(free.runs()) == [(start, 1, 0, 0) for start in range(0, 20, 2)]
    free = filled(*((start, 1, 3, start + 9) for start in range(0, 40, 2)), live=[4])
    assert len(free.spill(10)) == 10
    assert sorted(free.runs()) == [(start, 1, 3, start + 9) for start in range(20, 40, 2)]


def test_spill_with_room_for_all_moves_nothing():
    free = filled((1, 1), (5, 1, 3, 9), live=[4])
    assert free.spill(10) == []
    assert len(free) == 2


def test_coalesce():
    assert coalesce([], 9) == []
    assert coalesce([(5, 1, 3), (4, 1, 3), (7, 2, 3), (9, 1, 4), (6, 1, 2)], 9) == [
        (4, 2, 3, 9), (6, 1, 2, 9), (7, 2, 3, 9), (9, 1, 4, 9),
    ]  # fmt: skip


def test_release_joins_neighbours_and_empties_the_list():
    free, freed = FreeList(), [(5, 1, 3), (4, 1, 3), (7, 2, 3), (9, 1, 4), (6, 1, 2), (30, 1, 9)]
    free.release(freed, 9, [2])
    assert freed == []
    assert free.blockers() == {2}
    assert sorted(free.runs()) == [(4, 2, 0, 0), (6, 1, 2, 9), (7, 2, 0, 0), (9, 1, 0, 0), (30, 1, 0, 0)]
    free.release(freed, 10, [2])
    assert len(free) == 5


class Model:
    """Each page by itself."""

    def __init__(self):
        self.free = {}  # page -> (birth, freed)

    def sees(self, page, live):
        birth, freed = self.free[page]
        return any(birth <= reader < freed for reader in live)

    def ready(self, live):
        return {page for page in self.free if not self.sees(page, live)}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(2, 90), st.integers(1, 6), st.integers(1, 10)),
        st.tuples(st.just("take"), st.integers(0, 12)),
        st.tuples(st.just("take run"), st.integers(1, 8)),
        st.tuples(st.just("tail"), st.integers(0, 3)),
        st.tuples(st.just("read")),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("spill"), st.integers(0, 8)),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(OPERATIONS)
def test_any_sequence_equals_the_model_of_single_pages(operations):
    free, model, live, now = FreeList(), Model(), [], 10
    for what, *arguments in operations:
        now += 1
        if what == "add":
            start, length, age = arguments
            if set(range(start, start + length)) & set(model.free):
                continue
            run = (start, length, now - age, now)
            free.add(run, live)
            model.free.update(dict.fromkeys(range(start, start + length), run[2:]))
        elif what == "read":
            live = sorted({*live, now})
        elif what == "end" and live:
            live.pop(arguments[0] % len(live))
            free.settle(live)
        elif what in ("take", "take run"):
            if what == "take":
                taken = free.take(arguments[0])
                assert pages_of(taken) <= set(model.free)
                assert sum(length for _, length in taken) <= arguments[0]
                if len(pages_of(taken)) < arguments[0]:
                    assert free.ready_pages == 0
            else:
                start = free.take_run(arguments[0])
                taken = [] if start is None else [(start, arguments[0])]
            for page in pages_of(taken):
                assert not model.sees(page, live), "I2"
                del model.free[page]
        elif what == "tail":
            count = max(model.free, default=1) + 1 + arguments[0]
            cut = free.take_tail(count)
            for page in range(cut, count):
                assert not model.sees(page, live)
                del model.free[page]
        elif what == "spill":
            moved = free.spill(arguments[0])
            assert len(free) <= max(arguments[0], 0) + 1
            for start, length, birth, freed in moved:
                for page in range(start, start + length):
                    known = model.free.pop(page)
                    assert known == (birth, freed) or birth == freed == 0
        assert pages_of(free.runs()) == set(model.free)
        assert len(free) == len(free.runs())
        assert free.ready_pages + free.held_pages == len(model.free)
        assert free.held_pages >= len(set(model.free) - model.ready(live)), "what a reader sees is held"
        assert free.blockers() <= set(live)
    free.settle([])
    assert free.ready_pages == len(model.free)


# ---------------------------------------------------------------- in a database


def test_a_long_reader_pins_only_what_it_can_see():
    """Pages born and freed after it began are used again at once."""
    with database() as db:
        with db.write() as txn:
            txn.update(numbered(2000))
        old = db.read()
        for number in range(300):
            with db.write() as txn:
                txn[b"key%08d" % (number * 6)] = b"%d" % number
        size = db.info()["page_count"]
        for number in range(600):
            with db.write() as txn:
                txn[b"key%08d" % (number * 3 % 1800)] = b"%d" % number
        assert db.info()["page_count"] <= size + 20, "the file does not grow with the number of commits"
        assert db.check() == []
        assert dict(old) == dict(numbered(2000))
        old.close()
        with db.write() as txn:
            txn[b"after"] = b""
        assert db.stats().pinned_pages <= 16


def test_a_free_list_of_many_runs_goes_to_the_free_tree_and_comes_back():
    with database() as db:
        with db.write() as txn:
            txn.update((b"%06d" % number, bytes(900)) for number in range(6000))
        snapshots = []
        for step in range(40):
            with db.write() as txn:
                for number in range(step, 6000, 97):
                    txn.delete(b"%06d" % number)
            if step % 7 == 0:
                snapshots.append(db.read())
        assert db.check() == []
        for snapshot in snapshots:
            snapshot.close()
        with db.write() as txn:
            txn.delete(b"000000")
        stats = db.stats()
        assert stats.free_pages > 1000
        assert stats.free_pages > stats.carried_pages, "the bulk lies in the free tree"
        pages = stats.page_count
        with db.write() as txn:
            txn.update((b"new%06d" % number, bytes(900)) for number in range(1500))
        assert db.stats().page_count <= pages, "what was free is used before the file grows"


def test_after_all_is_deleted_the_file_shrinks():
    with database() as db:
        with db.write() as txn:
            txn.update((b"%06d" % number, bytes(900)) for number in range(4000))
        large = db.stats().file_size
        with db.write() as txn:
            txn.clear()
        for number in range(5):
            with db.write() as txn:
                txn[b"%d" % number] = b""
        assert db.stats().file_size < large / 4
