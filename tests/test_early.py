"""What has come to its end is written early: full pages that sorted input leaves behind, and values of many pages."""

from __future__ import annotations

import random

import pytest
from kernel import database
from sortedcontainers import SortedDict

from cowdb import pager
from cowdb.errors import Error
from cowdb.kernel import FORM
from cowdb.writer import EARLY


def in_order(count, size=100):
    return ((b"%08d" % number, bytes([number % 251]) * size) for number in range(count))


def load(db, pairs, early, after=lambda txn: None):
    """Put `pairs` in one transaction; the most bytes that were dirty, and how many pages were written early."""
    most = 0
    with db.write() as txn:
        txn.changes.early = early
        for key, value in pairs:
            txn[key] = value
            most = max(most, txn.changes.dirty)
        written = txn._draft.written
        after(txn)
    return most, written


def test_sorted_input_is_written_early_and_makes_the_same_tree():
    sizes = []
    for early in (20 * 4096, 1 << 40):
        with database() as db:
            most, written = load(db, in_order(20_000), early)
            assert (most > 500 * 4096) is (early == 1 << 40)
            if written:
                assert most < 100 * 4096, "what was written is not kept in memory"
                assert written > 500
            with db.read() as snapshot:
                assert list(snapshot.items()) == list(in_order(20_000))
            sizes.append(db.stats().page_count)
    assert sizes[1] <= sizes[0] < 1.02 * sizes[1]


def test_by_default_eight_megabytes_at_a_time():
    with database(page_size=32768) as db:
        most, written = load(db, in_order(2500, 8000), EARLY)
        assert EARLY <= most < 1.05 * EARLY
        assert 2 * EARLY <= written * 32768 < 2.1 * EARLY, "twice"


def test_the_file_is_hardly_longer_than_what_is_in_it(monkeypatch):
    """The story: it grew by an eighth with the last early write, as for small commits."""
    monkeypatch.setattr(pager, "EARLY", 20 * 4096)
    for count in range(60_000, 64_000, 500):
        with database() as db:
            _, written = load(db, in_order(count), 20 * 4096)
            assert written > 1000
            pages, length = db.stats().page_count, db.info()["file_size"] // 4096
            assert pages <= length <= pages + 2 * (32 + pages // 64)


def test_values_of_many_pages_are_written_early_wherever_their_keys_are():
    rng = random.Random(4)
    model = SortedDict((rng.randbytes(8), rng.randbytes(rng.randrange(20_000, 60_000))) for _ in range(60))
    with database() as db:
        most, written = load(db, random.Random(5).sample(list(model.items()), len(model)), 300_000)
        assert most < 300_000 + 60_000 + 10 * 4096
        assert written > 300
        with db.read() as snapshot:
            assert list(snapshot.items()) == list(model.items())


def test_a_value_that_is_replaced_before_it_was_written_has_not_come_to_its_end():
    with database() as db, db.write() as txn:
        txn.changes.early = 200_000
        for number in range(50):
            txn[b"one"] = bytes([number]) * 30_000
            assert txn.changes.ended == 30_000
        del txn[b"one"]
        assert txn.changes.ended == 0
        assert txn._draft.written == 0


def test_what_is_put_at_random_waits_for_the_commit():
    """Pages that will change again would be written again."""
    rng = random.Random(6)
    with database() as db:
        _, written = load(db, ((rng.randbytes(8), bytes(100)) for _ in range(5000)), 20 * 4096)
        assert written == 0


def test_sorted_input_among_much_that_changes_waits_with_it():
    rng = random.Random(7)
    with database() as db:
        with db.write() as txn:
            txn.update((rng.randbytes(8), bytes(100)) for _ in range(5000))
            keys = list(txn)
        with db.write() as txn:
            txn.changes.early = 20 * 4096
            txn.update((key, bytes(90)) for key in keys)
            dirty = txn.changes.dirty
            assert dirty > 100 * 4096
            txn.update((b"\xff" * 8 + key, value) for key, value in in_order(1000))
            assert txn.changes.dirty > dirty
            assert txn._draft.written == 0


def test_what_was_written_early_is_changed_deleted_and_given_up_like_anything_else():
    with database() as db:
        load(db, in_order(2000), 20 * 4096, after=change)
        with db.read() as snapshot:
            found = dict(snapshot.items())
        assert found == changed()
        assert db.check() == []
        pages = db.stats().page_count
        txn = db.write()
        txn.changes.early = 20 * 4096
        txn.update((b"x" + key, value) for key, value in in_order(5000))
        assert txn._draft.written > 100
        txn.abort()
        with db.read() as snapshot:
            assert dict(snapshot.items()) == found
        assert db.stats().page_count == pages
        assert db.check() == []
        db[b"next"] = b"one"
        assert db.check() == []


def change(txn):
    for number in range(0, 2000, 3):
        txn[b"%08d" % number] = b"changed"
    for number in range(1, 2000, 3):
        del txn[b"%08d" % number]
    txn.delete_range(b"%08d" % 1500, b"%08d" % 1600)


def changed():
    model = dict(in_order(2000))
    for number in range(0, 2000, 3):
        model[b"%08d" % number] = b"changed"
    for number in range(1, 2000, 3):
        del model[b"%08d" % number]
    for number in range(1500, 1600):
        model.pop(b"%08d" % number, None)
    return model


@pytest.mark.parametrize("tuning", [{}, {"memory_budget": 60_000}])
def test_early_writes_use_the_pages_that_lie_in_the_free_tree(tuning):
    """The story: they looked at what was in memory only, and the file grew beside free pages."""
    with database(**tuning) as db:
        rng = random.Random(8)
        load(db, in_order(12_000), 1 << 40)
        for _ in range(4):  # free pages in many pieces, which the meta page has no room for
            with db.write() as txn:
                for number in rng.sample(range(12_000), 900):
                    txn.put(b"%08d" % number, bytes(80))
        with db.write() as txn:
            txn.delete_range(b"%08d" % 2000, None)
        db[b"0"] = b""
        db[b"0"] = b"1"
        stats = db.stats()
        before = stats.page_count
        assert stats.free_pages > 400
        _, written = load(db, ((b"z" + key, value) for key, value in in_order(8000)), 20 * 4096)
        assert written > 150
        assert db.stats().page_count <= before + 20
        assert db.check() == []


def test_early_writes_use_the_pages_that_only_the_transaction_before_held_back():
    """The story: those became free with its end, and nobody looked; loading, clearing and loading doubled the file."""
    with database() as db:
        sizes = []
        for _ in range(4):
            load(db, in_order(8000), 20 * 4096)
            sizes.append(db.stats().page_count)
            with db.write() as txn:
                txn.clear()
        assert max(sizes) <= sizes[0] + 20
        assert db.check() == []


def test_early_writes_use_the_pages_of_a_reader_that_ends_meanwhile():
    with database() as db:
        load(db, in_order(4000), 20 * 4096)
        reader = db.read()
        with db.write() as txn:
            txn.clear()
        before = db.stats().page_count
        with db.write() as txn:
            txn.changes.early = 20 * 4096
            txn[b"0"] = b"0"
            reader.close()
            txn.update(in_order(4000))
            assert txn._draft.written > 50
        assert db.stats().page_count <= before + 20


def test_a_transaction_that_fits_at_its_end_is_not_refused_for_an_early_write():
    """The story: 10 MB put and 9 of them deleted did not fit into 4 MB, though they had before there were any; nor did
    longer values into what shorter ones had left, which had been written and then deleted."""
    with database(max_size=1000 * 4096) as db:
        with db.write() as txn:
            for number in range(250):
                txn[b"%03d" % number] = bytes([number]) * 40_000
            assert txn._draft.written == 0
            for number in range(225):
                del txn[b"%03d" % number]
        with db.read() as snapshot:
            assert dict(snapshot.items()) == {b"%03d" % number: bytes([number]) * 40_000 for number in range(225, 250)}
        assert db.check() == []


def test_what_was_deleted_again_has_not_come_to_its_end():
    """The story: after a range in order had been put and deleted, pages put at random were taken for ended ones."""
    rng = random.Random(11)
    with database() as db, db.write() as txn:
        txn.changes.early = 100 * 4096
        txn.update(in_order(2500))
        assert txn.changes.ended > 60 * 4096
        txn.clear()
        assert txn.changes.ended == txn.changes.dirty == 0
        txn.update((rng.randbytes(8), bytes(100)) for _ in range(4000))
        assert txn._draft.written == 0


@pytest.mark.parametrize("how", ["items", "values", "reversed"])
def test_an_iteration_goes_on_over_values_that_another_tree_has_written(how):
    """The story: the values of the leaf that it was in could not be found any more, once they had been written."""
    with database() as db, db.write() as txn:
        tree, other = txn.tree("a", create=True), txn.tree("b", create=True)
        for number in range(10):
            tree[b"%d" % number] = bytes([number]) * 20_000
        txn.changes.early = 250_000
        found = {"items": tree.items, "values": tree.values, "reversed": lambda: reversed(tree.items())}[how]()
        seen = []
        for number, entry in enumerate(found):
            seen.append(entry if how == "values" else entry[1])
            other[b"%d" % number] = bytes(20_000)
        assert txn._draft.written > 0
        wanted = [bytes([number]) * 20_000 for number in range(10)]
        assert seen == (wanted[::-1] if how == "reversed" else wanted)


def test_an_iteration_goes_on_when_a_put_that_changes_nothing_has_written_early():
    with database() as db, db.write() as txn:
        for number in range(10):
            txn[b"%d" % number] = bytes([number]) * 20_000
        txn.changes.early = 1
        txn[b"z"] = bytes(20_000)
        for key, value in txn.items():
            if key != b"z":
                assert value == bytes([int(key)]) * 20_000
                assert not txn.put(key, b"", overwrite=False)
        assert txn._draft.written > 0


def test_an_early_write_that_was_broken_off_twice_cannot_be_committed(monkeypatch):
    """The story: interrupted again before it was closed, the transaction was committed without pages it had taken."""
    with database() as db:
        db[b""] = b"1"
        txn = db.write()
        txn.changes.early = 10 * 4096
        draft_class = type(txn._draft)
        allocator = db._core.pager.allocator
        allot, close = allocator.allot, draft_class.close
        calls = []

        def interrupted(*args, **options):
            allot(*args, **options)
            raise KeyboardInterrupt

        def interrupted_again(draft):
            calls.append(draft)
            if len(calls) == 1:
                raise KeyboardInterrupt
            close(draft)

        if FORM == "plain":  # nothing strikes in the middle of a call into C
            monkeypatch.setattr(draft_class, "close", interrupted_again)
        monkeypatch.setattr(allocator, "allot", interrupted)
        with pytest.raises(KeyboardInterrupt):
            txn.update(in_order(4000))
        monkeypatch.undo()
        assert txn.changes.torn
        assert len(calls) == (FORM == "plain")
        with pytest.raises(Error, match="interrupted" if calls else "ended"):
            txn.commit()
        txn.abort()
        assert len(db) == 1
        db[b"after"] = b"2"
        assert db.check() == []


def test_a_lazy_transaction_asks_for_nothing_early(monkeypatch):
    asked = []
    write = pager.write_sealed

    def watched(storage, sealed, size, *, flushed):
        asked.append(flushed)
        return write(storage, sealed, size, flushed=flushed)

    begun = []
    monkeypatch.setattr(pager, "write_sealed", watched)
    monkeypatch.setattr(pager, "SOON", 20 * 4096)
    monkeypatch.setattr(pager, "begin_writing", lambda _, start, *, little: begun.append((start, little)))
    for durability, wanted in (("full", {True}), ("lazy", {False})):
        asked.clear()
        begun.clear()
        with database(durability=durability) as db:
            load(db, in_order(3000), 20 * 4096)
            assert len(asked) > 3
            assert set(asked) == wanted
            early = [call for call in begun if call == (0, False)]
            assert len(early) > 3 if durability == "full" else not begun
