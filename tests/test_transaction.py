"""Transactions: beginning and end, named trees, what is seen by whom."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest

import cowdb
from cowdb import kernel
from cowdb.catalog import find_tree


def test_a_transaction_sees_its_own_changes_and_nobody_else_does(database):
    db = database()
    db[b"a"] = b"1"
    before = db.read()
    with db.write() as transaction:
        transaction[b"a"] = b"2"
        transaction.tree("t", create=True)[b"x"] = b"y"
        assert transaction[b"a"] == b"2"
        assert transaction.trees() == ["t"]
        assert db[b"a"] == b"1"
        with db.read() as other:
            assert other.trees() == []
    assert before[b"a"] == b"1"
    assert before.trees() == []
    with db.read() as after:
        assert after[b"a"] == b"2"
        assert after.tree("t")[b"x"] == b"y"
    before.close()


def test_ids_rise_and_tell_the_states_apart(database):
    db = database()
    with db.read() as snapshot:
        assert snapshot.id == 1
    with db.write() as transaction:
        assert transaction.id == 2
        transaction[b"a"] = b"1"
    with db.read() as snapshot:
        assert snapshot.id == 2


@pytest.mark.guarantee
@pytest.mark.parametrize("end", ["commit", "abort", "close"])
def test_a_commit_or_an_abort_ends_a_writer_and_its_trees_cursors_and_iterators(database, end):
    db = database()
    transaction = db.write()
    transaction[b"a"] = b"1"
    tree = transaction.tree("t", create=True)
    tree[b"x"] = b"y"
    cursor = tree.cursor()
    cursor.first()
    iterator = iter(transaction.items())
    view = tree.keys()
    assert not transaction.closed
    getattr(transaction, end)()
    assert transaction.closed
    for act in (
        lambda: transaction[b"a"], lambda: transaction.put(b"b", b"2"), lambda: transaction.delete(b"a"),
        lambda: len(transaction), lambda: tree[b"x"], lambda: tree.put(b"z", b""), lambda: list(view),
        cursor.next, lambda: cursor.value, lambda: next(iterator), lambda: transaction.tree("t"),
        transaction.trees, lambda: transaction.drop("t"), lambda: transaction.rename("t", "u"),
        transaction.commit, transaction.__enter__, transaction.clear, lambda: transaction.get_view(b"a"),
        transaction.first, lambda: transaction.bisect_left(b"a"), tree.count,
    ):  # fmt: skip
        with pytest.raises(cowdb.ClosedError):
            act()
    transaction.abort()
    transaction.close()
    assert "closed" in repr(transaction)
    db[b"next"] = b"1"


def test_a_reader_that_has_ended_refuses_and_so_do_its_trees(database):
    db = database()
    with db.write() as transaction:
        transaction[b"a"] = b"1"
        transaction.tree("t", create=True)[b"x"] = b"y"
    snapshot = db.read()
    tree = snapshot.tree("t")
    assert snapshot.tree("t") is tree
    cursor, iterator = tree.cursor(), iter(snapshot)
    snapshot.close()
    snapshot.close()
    snapshot.abort()
    assert snapshot.closed
    for act in (lambda: snapshot[b"a"], lambda: len(snapshot), snapshot.trees, lambda: snapshot.tree("t"),
                lambda: tree[b"x"], cursor.first, lambda: next(iterator), snapshot.__enter__,
                lambda: snapshot.get_view(b"a")):  # fmt: skip
        with pytest.raises(cowdb.ClosedError):
            act()
    assert "closed" in repr(snapshot)


def test_a_commit_inside_a_block_is_not_repeated_at_its_end(database):
    db = database()
    with db.write() as transaction:
        transaction[b"a"] = b"1"
        transaction.commit()
    with db.write() as transaction:
        transaction[b"a"] = b"2"
        transaction.abort()
    assert db[b"a"] == b"1"
    assert db.stats().commits == 1


def test_any_exception_aborts_also_one_that_is_no_error(database):
    db = database()
    for error in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), db.write() as transaction:
            transaction[b"a"] = b"1"
            raise error
    assert len(db) == 0
    db[b"b"] = b"2"


def test_a_reader_creates_nothing(database):
    db = database()
    with db.read() as snapshot:
        with pytest.raises(TypeError, match="write"):
            snapshot.tree("t", create=True)
        with pytest.raises(cowdb.KeyNotFoundError):
            snapshot.tree("t")
        assert not hasattr(snapshot, "put")
        assert not hasattr(snapshot, "commit")


# ---------------------------------------------------------------- named trees


def test_trees_are_made_dropped_and_renamed(database):
    db = database()
    with db.write() as transaction:
        with pytest.raises(KeyError):
            transaction.tree("users")
        users = transaction.tree("users", create=True)
        assert transaction.tree("users") is users
        users[b"1"] = b"Ada"
        transaction.tree("empty", create=True)
        assert transaction.trees() == ["empty", "users"]
        transaction.rename("users", "people")
        assert transaction.tree("people")[b"1"] == b"Ada"
        users[b"2"] = b"Grace"
        with pytest.raises(cowdb.KeyNotFoundError):
            transaction.tree("users")
    with db.write() as transaction:
        assert dict(transaction.tree("people").items()) == {b"1": b"Ada", b"2": b"Grace"}
        with pytest.raises(ValueError, match="already"):
            transaction.rename("people", "empty")
        transaction.rename("people", "people")
        people = transaction.tree("people")
        transaction.drop("people")
        with pytest.raises(cowdb.ClosedError):
            people[b"1"]
        with pytest.raises(cowdb.KeyNotFoundError):
            transaction.drop("people")
        with pytest.raises(cowdb.KeyNotFoundError):
            transaction.rename("people", "x")
        again = transaction.tree("people", create=True)
        assert len(again) == 0
        again[b"3"] = b"Edsger"
    with db.read() as snapshot:
        assert snapshot.trees() == ["empty", "people"]
        assert dict(snapshot.tree("people").items()) == {b"3": b"Edsger"}
        assert len(snapshot.tree("empty")) == 0


@pytest.mark.parametrize("order", ["rename, restore", "drop, make", "rename, make, rename", "swap"])
def test_rename_and_restore_in_one_transaction(database, order):
    """redb 4.x: renaming a tree and restoring it in one transaction lost it."""
    db = database()
    with db.write() as transaction:
        for name in ("one", "two"):
            tree = transaction.tree(name, create=True)
            tree.update((b"%04d" % number, name.encode()) for number in range(500))
    with db.write() as transaction:
        if order == "rename, restore":
            transaction.tree("one")[b"new"] = b"1"
            transaction.rename("one", "x")
            transaction.rename("x", "one")
            expected = (501, 500)
        elif order == "drop, make":
            transaction.drop("one")
            transaction.tree("one", create=True)[b"new"] = b"1"
            expected = (1, 500)
        elif order == "rename, make, rename":
            transaction.rename("one", "x")
            transaction.tree("one", create=True)[b"new"] = b"1"
            transaction.drop("two")
            transaction.rename("x", "two")
            expected = (1, 500)
        else:
            transaction.rename("one", "x")
            transaction.rename("two", "one")
            transaction.rename("x", "two")
            expected = (500, 500)
    with db.read() as snapshot:
        assert snapshot.trees() == ["one", "two"]
        assert (len(snapshot.tree("one")), len(snapshot.tree("two"))) == expected
        if order == "swap":
            assert snapshot.tree("one")[b"0000"] == b"two"
    assert db.check() == []


@pytest.mark.parametrize(
    ("name", "error"),
    [("", ValueError), (b"bytes", TypeError), (None, TypeError), (3, TypeError), ("x" * 5000, cowdb.KeySizeError)],
)
def test_a_name_that_is_none(database, name, error):
    db = database()
    with db.write() as transaction:
        with pytest.raises(error):
            transaction.tree(name, create=True)
        transaction.tree("t", create=True)
        with pytest.raises(error):
            transaction.rename("t", name)
        assert transaction.trees() == ["t"]
    with db.read() as snapshot, pytest.raises(error):
        snapshot.tree(name)


def test_names_of_every_script_and_their_order(database):
    db = database()
    names = ["z", "ä", "\u4e2d", "\U0001f404", "a" * db.max_key_size, "\0"]
    with db.write() as transaction:
        for name in names:
            transaction.tree(name, create=True)[b"k"] = name.encode()
    with db.read() as snapshot:
        assert snapshot.trees() == sorted(names, key=str.encode)
        for name in names:
            assert snapshot.tree(name)[b"k"] == name.encode()


def test_a_name_that_is_no_text_in_utf_8_is_refused(database):
    db = database()
    with db.write() as transaction, pytest.raises(ValueError, match="surrogate"):
        transaction.tree("\ud800", create=True)


@pytest.mark.guarantee
def test_a_tree_asked_for_while_another_thread_ends_the_reader_is_never_left_open(database, monkeypatch):
    db = database()
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"x"] = b"y"
    reader = db.read()

    def find_and_end(*args):
        found = find_tree(*args)
        reader.close()  # as another thread may in this very moment
        return found

    monkeypatch.setattr(cowdb.transaction, "find_tree", find_and_end)
    with pytest.raises(cowdb.ClosedError, match="has ended"):
        reader.tree("t")


def test_two_threads_that_ask_for_a_tree_get_the_same_and_it_ends_with_the_reader(database, monkeypatch):
    db = database()
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"x"] = b"y"
    reader = db.read()
    others = []

    def find_twice(*args):
        monkeypatch.undo()
        others.append(reader.tree("t"))  # as another thread may in this very moment
        return find_tree(*args)

    monkeypatch.setattr(cowdb.transaction, "find_tree", find_twice)
    assert reader.tree("t") is others[0]
    reader.close()
    with pytest.raises(cowdb.ClosedError):
        others[0].get(b"x")


@pytest.mark.usefixtures("many_switches")
def test_threads_that_ask_for_the_first_tree_of_a_reader_get_the_same(database):
    db = database()
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"x"] = b"y"
    for _ in range(300):
        start = threading.Barrier(3)
        with db.read() as reader:
            found = []

            def ask(reader=reader, start=start, found=found):
                start.wait()
                found.append(reader.tree("t"))

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 3
            assert found[0] is found[1] is found[2]


@pytest.mark.parametrize(
    ("name", "ask"), [("find_tree", lambda reader: reader.tree("t")), ("names_in", lambda reader: reader.trees())]
)
def test_damage_that_is_met_in_a_catalog_which_was_closed_meanwhile_is_none(database, monkeypatch, name, ask):
    reader = database().read()

    def damaged(*_):
        reader.close()
        raise cowdb.CorruptionError(7, "the page was written again")

    monkeypatch.setattr(cowdb.transaction, name, damaged)
    with pytest.raises(cowdb.ClosedError, match="has ended"):
        ask(reader)


@pytest.mark.guarantee
def test_many_trees(database):
    db = database(page_size=4096)
    with db.write() as transaction:
        for number in range(300):
            transaction.tree("tree%03d" % number, create=True)[b"k"] = b"%d" % number
    with db.write() as transaction:
        for number in range(0, 300, 2):
            transaction.drop("tree%03d" % number)
        for number in range(1, 300, 2):
            transaction.tree("tree%03d" % number)[b"l"] = b"x" * 3000
    with db.read() as snapshot:
        assert len(snapshot.trees()) == 150
        assert all(len(snapshot.tree(name)) == 2 for name in snapshot.trees())
    assert db.check() == []


def test_a_tree_that_is_only_looked_at_costs_nothing(database):
    db = database()
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"k"] = b"v"
    commits = db.stats().commits
    with db.write() as transaction:
        assert transaction.tree("t")[b"k"] == b"v"
    assert db.stats().commits == commits
    with db.write() as transaction:
        assert transaction.tree("t")[b"k"] == b"v"
        transaction[b"a"] = b"1"
    with db.read() as snapshot:
        assert snapshot.tree("t")[b"k"] == b"v"


# ---------------------------------------------------------------- threads, forgetting


def test_a_reader_may_be_used_and_ended_by_any_thread(database):
    db = database()
    db[b"a"] = b"1"
    snapshot = db.read()
    found = []

    def work():
        found.append(snapshot[b"a"])
        snapshot.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [b"1"]
    assert db.readers() == []


def test_a_writer_may_be_ended_by_another_thread(database):
    db = database()
    transaction = db.write()
    transaction[b"a"] = b"1"
    thread = threading.Thread(target=transaction.commit)
    thread.start()
    thread.join()
    db[b"b"] = b"2"
    assert len(db) == 2


def test_a_half_made_transaction_object_is_collected_in_silence():
    from cowdb.transaction import Transaction, WriteTransaction

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (Transaction, WriteTransaction):
            kind.__new__(kind).__del__()


def test_a_tree_outlives_no_forgotten_reader(database):
    db = database()
    with db.write() as transaction:
        transaction.tree("t", create=True)[b"k"] = b"v"
    tree = db.read().tree("t")
    gc.collect()
    with pytest.raises(cowdb.ClosedError):
        tree[b"k"]
    assert db.readers() == []


@pytest.mark.guarantee
@pytest.mark.skipif(kernel.FORM == "compiled", reason="nothing interrupts a change in the middle of a call into C")
def test_an_interrupted_change_is_never_committed(database, monkeypatch):
    """Control-C in the middle of a put: the tree may be half changed, so the transaction can only be aborted."""
    db = database(page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%04d" % number, b"v" * 50) for number in range(200))
    transaction = db.write()

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cowdb.page.Page.insert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            transaction[b"0100x"] = b"new"
    with pytest.raises(cowdb.Error, match="interrupted"):
        transaction.commit()
    assert transaction.closed
    assert len(db) == 200
    db[b"a"] = b"1"


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_transaction_leaves_nothing_to_the_garbage_collector(tmp_path, durability):
    """The story: a transaction and its draft referred to each other, so the copies of pages of a thousand small commits
    lay about until the collector came by, and each new one found cold memory."""
    with cowdb.open(tmp_path / "db", durability=durability) as db:
        db[b"first"] = b""
        gc.collect()
        gc.disable()
        try:
            for number in range(10):
                with db.write() as txn:
                    txn[b"%d" % number] = b"x"
                    txn.tree("named", create=True)[b"%d" % number] = bytes(20_000)
                txn = db.write()
                txn[b"no"] = b"x"
                txn.abort()
                with db.read() as snap:
                    assert len(list(snap.items())) == len(snap)
            del txn, snap
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("end", ["commit", "abort", "close"])
def test_the_names_of_trees_are_not_told_after_the_end(tmp_path, end):
    """The story: a write transaction that had ended still listed its trees, out of a state that nobody kept for it."""
    with cowdb.open(tmp_path / "db") as db:
        with db.write() as txn:
            txn.tree("a", create=True)
        txn = db.write()
        assert txn.trees() == ["a"]
        if end == "close":
            db.close()
        else:
            getattr(txn, end)()
        with pytest.raises(cowdb.ClosedError):
            txn.trees()
        with pytest.raises(cowdb.ClosedError):
            txn.tree("a")
