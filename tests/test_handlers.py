"""A signal's handler, a finalizer or another thread, in the middle of what a write transaction is doing.

What they ask for is done before or after it, or refused; nothing is half done, and nothing that was told is lost.
The same in the middle of a flush is in `test_group`, in the middle of the gate in `test_readers`.
"""

from __future__ import annotations

import contextlib
import gc
import threading

import pytest

import cowdb
from cowdb import format as fmt


def of_a_signal(db, act):
    """Have `act` called once, as a signal's handler would be, when `db` is about to write pages."""
    pager = db._core.pager
    told = []

    def extend(draft, below=pager._extend):
        told.append(draft)
        if len(told) == 1:
            act()
        below(draft)

    pager._extend = extend
    return told


def ask(transaction, db, how):
    """What a handler may ask for in the middle of a commit."""
    if how == "close the database":
        db.close()
    elif how == "commit":
        transaction.commit()
    else:
        transaction.abort()


@pytest.mark.guarantee
@pytest.mark.parametrize("how", ["abort", "commit", "close the database"])
@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize("early", [False, True])
def test_a_signals_handler_ends_no_transaction_whose_pages_are_being_written(tmp_path, how, durability, early):
    """The story: an abort in the middle of the commit let the writer lock go, and the commit went on writing. What
    was committed in between was lost, and its pages lay among those of the other."""
    with cowdb.open(tmp_path / "db", durability=durability, page_size=4096) as db:
        db[b"before"] = b"1"
        transaction = db.write()
        refused = []

        def handler():
            with pytest.raises(cowdb.Error, match="being written") as caught:
                ask(transaction, db, how)
            refused.append(caught.value)

        asked = of_a_signal(db, handler)
        if early:
            transaction.changes.budget = 20_000
        for number in range(1000):
            transaction[b"%04d" % number] = b"v" * 90
        assert bool(refused) is early
        transaction.commit()
        assert len(refused) == 1
        assert (len(asked) > 1) is early
        assert transaction.closed
        transaction.abort()  # harmless
        assert len(db) == 1001
        db[b"after"] = b"2"
        assert db.check() == []
    with cowdb.open(tmp_path / "db") as db:
        assert len(db) == 1002


@pytest.mark.parametrize("early", [False, True])
def test_a_write_that_failed_leaves_a_transaction_that_can_be_aborted(tmp_path, early):
    with cowdb.open(tmp_path / "db", page_size=4096) as db:
        db[b"before"] = b"1"
        transaction = db.write()
        of_a_signal(db, lambda: 1 / 0)
        if early:
            transaction.changes.budget = 20_000
        with pytest.raises(ZeroDivisionError):
            for number in range(1000):
                transaction[b"%04d" % number] = b"v" * 90
            transaction.commit()
        transaction.abort()
        assert transaction.closed
        db[b"after"] = b"2"
        assert len(db) == 2
        assert db.check() == []


@pytest.mark.guarantee
@pytest.mark.parametrize("act", ["put", "delete", "range", "clear", "tree", "new tree", "drop", "rename", "named"])
@pytest.mark.parametrize("early", [False, True])
def test_a_signals_handler_changes_no_transaction_whose_pages_are_being_written(tmp_path, act, early):
    """The story: what was put in the middle of the commit got neither number nor checksum, and was committed so."""
    with cowdb.open(tmp_path / "db", page_size=4096) as db:
        with db.write() as txn:
            txn.update((b"%04d" % number, b"v" * 60) for number in range(500))
            txn.tree("named", create=True).update((b"%04d" % number, b"v" * 60) for number in range(500))
        transaction = db.write()
        named = transaction.tree("named")
        named[b"0000"] = b"changed"
        refused = []
        acts = {
            "put": lambda: transaction.put(b"0250", b"handler"),
            "delete": lambda: transaction.delete(b"0250"),
            "range": lambda: transaction.delete_range(b"0100", b"0300"),
            "clear": transaction.clear,
            "tree": lambda: transaction.tree("named"),
            "new tree": lambda: transaction.tree("new", create=True),
            "drop": lambda: transaction.drop("named"),
            "rename": lambda: transaction.rename("named", "other"),
            "named": lambda: named.put(b"0250", b"handler"),
        }

        def handler():
            with pytest.raises(cowdb.Error) as caught:
                acts[act]()
            refused.append(str(caught.value))

        of_a_signal(db, handler)
        if early:
            transaction.changes.budget = 20_000
        for number in range(0, 500, 2):
            transaction[b"%04d" % number] = b"w" * 60
        transaction.commit()
        assert len(refused) == 1
        assert "further up" in refused[0] or "interrupted" in refused[0]
        assert db.check() == []
        with db.read() as snapshot:
            assert len(dict(snapshot.items())) == len(snapshot) == 500
            assert snapshot.trees() == ["named"]
            assert snapshot[b"0250"] == b"w" * 60
        db[b"next"] = b"n"
        assert db.check() == []


@pytest.mark.parametrize("act", ["put", "delete", "range", "abort"])
@pytest.mark.parametrize("change", ["put a large value", "replace a large value", "delete a large value"])
def test_a_signals_handler_in_the_middle_of_a_change(database, monkeypatch, change, act):
    """The story: the compiled form went on in pages that an abort of the handler's had given back."""
    db = database(page_size=4096)
    with db.write() as txn:
        txn.update((b"%04d" % number, b"v" * 60) for number in range(300))
    transaction = db.write()
    transaction[b"0150"] = b"L" * 20_000
    outcome = []
    acts = {
        "put": lambda: transaction.put(b"0151", b"handler"),
        "delete": lambda: transaction.delete(b"0151"),
        "range": lambda: transaction.delete_range(b"0100", b"0200"),
        "abort": transaction.abort,
    }

    def overflow_pages(length, page_size, below=fmt.overflow_pages):
        if not outcome:
            outcome.append(None)
            try:
                acts[act]()
            except cowdb.Error as error:
                outcome[0] = error
        return below(length, page_size)

    with monkeypatch.context() as patch:
        patch.setattr("cowdb.format.overflow_pages", overflow_pages)
        with contextlib.suppress(cowdb.ClosedError) if act == "abort" else contextlib.nullcontext():
            if change == "delete a large value":
                transaction.delete(b"0150")
            else:
                transaction[b"0150" if change.startswith("replace") else b"0155x"] = b"M" * 30_000
    assert len(outcome) == 1, "it was in the middle"
    if act == "abort":
        assert transaction.closed
        assert len(db) == 300
    else:
        assert outcome[0] is not None, "it was refused"
        transaction.commit()
        assert len(db) == (299 if change.startswith("delete") else 300 + change.startswith("put"))
    assert db.check() == []


@pytest.mark.guarantee
def test_a_finalizer_that_the_collector_runs_in_the_middle_of_a_change_changes_nothing(database):
    """The story: the compiled form let it put in the middle of a put, and pages were free twice in what was committed.

    Before Python 3.12 any allocation may run the collector, and with it whatever a finalizer does.
    """
    db = database(page_size=4096)
    with db.write() as transaction:
        transaction.update((b"%05d" % (2 * number), b"v" * 60) for number in range(3000))
    outcomes = []

    class Cache:
        def __init__(self, act):
            self.me = self
            self.act = act

        def __del__(self):
            try:
                self.act()
                outcomes.append("done")
            except cowdb.Error:
                outcomes.append("refused")

    transaction = db.write()
    model = dict(transaction.items())
    threshold = gc.get_threshold()
    gc.disable()
    try:
        for number in range(50, 3000, 60):
            key = b"%05d" % (2 * number)
            gc.collect()
            before = len(outcomes)
            Cache(lambda key=key: transaction.put(key + b"c", b"cache"))
            gc.set_threshold(1)
            gc.enable()
            if number % 3:
                transaction.put(key, b"mine")
            else:
                transaction.delete(key)
            gc.disable()
            gc.set_threshold(*threshold)
            gc.collect()
            if number % 3:
                model[key] = b"mine"
            else:
                del model[key]
            assert len(outcomes) == before + 1
            if outcomes[-1] == "done":  # before the change, or after it
                model[key + b"c"] = b"cache"
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    transaction.commit()
    assert db.check() == []
    with db.read() as snapshot:
        assert dict(snapshot.items()) == model


@pytest.mark.parametrize("leave", ["at its end", "by an error"])
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_who_leaves_a_block_while_another_thread_commits_ends_nothing(tmp_path, leave, durability):
    """The story: it was refused to end it, and ended it all the same; what the next writer committed was lost."""
    with cowdb.open(tmp_path / "db", durability=durability, page_size=4096) as db:
        db[b"0"] = b"0"
        there, go = threading.Event(), threading.Event()
        committed = []

        def wait():
            there.set()
            assert go.wait(10)

        def commit():
            transaction.commit()
            committed.append(True)

        with pytest.raises(cowdb.Error, match="being written") as caught:  # noqa: SIM117
            with db.write() as transaction:
                transaction.update((b"%04d" % number, b"a" * 50) for number in range(500))
                of_a_signal(db, wait)
                thread = threading.Thread(target=commit)
                thread.start()
                assert there.wait(10)
                if leave == "by an error":
                    raise ValueError
        assert isinstance(caught.value.__context__, ValueError) is (leave == "by an error")
        assert not transaction.closed
        with pytest.raises(cowdb.Error):
            db.write(timeout=0.01)
        go.set()
        thread.join(10)
        assert committed == [True]
        assert transaction.closed
        with db.write() as following:
            following[b"b"] = b"b"
        assert len(db) == 502
        assert db.check() == []


def test_a_handler_that_commits_in_the_middle_of_a_change_is_refused(database, monkeypatch):
    """The story: the change went on in a transaction that had ended, said that it was done, and was stored nowhere."""
    db = database(page_size=4096)
    transaction = db.write()
    transaction[b"0"] = b"0"
    refused = []

    def overflow_pages(length, page_size, below=fmt.overflow_pages):
        if not refused:
            with pytest.raises(cowdb.Error, match="in the middle of a change") as caught:
                transaction.commit()
            refused.append(caught.value)
            for act in (lambda: transaction.tree("x", create=True), lambda: transaction.rename("x", "y")):
                with pytest.raises(cowdb.Error):
                    act()
        return below(length, page_size)

    with monkeypatch.context() as patch:
        patch.setattr("cowdb.format.overflow_pages", overflow_pages)
        transaction.put(b"1", b"L" * 30_000)
    assert len(refused) == 1
    transaction.commit()
    assert len(db) == 2


def test_nothing_is_changed_while_a_transaction_without_changes_ends(database):
    """The story: what a handler put just then was accepted, and stored nowhere."""
    db = database()
    transaction = db.write()
    refused = []
    pager = db._core.pager
    real = pager.finish

    def finish(draft):
        with pytest.raises(cowdb.Error) as caught:
            transaction.put(b"k", b"v")
        refused.append(caught.value)
        real(draft)

    pager.finish = finish
    transaction.commit()
    del pager.finish
    assert len(refused) == 1
    assert len(db) == 0


@pytest.mark.guarantee
@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_block_in_whose_middle_the_database_is_closed_says_that_nothing_is_stored(tmp_path, durability):
    """The story: a signal's handler closed it; the block ended without a word, as if it had committed."""
    path = tmp_path / "db"
    db = cowdb.open(path, durability=durability)
    with pytest.raises(cowdb.ClosedError, match="nothing of it is stored"), db.write() as transaction:
        transaction[b"k"] = b"v"
        db.close()
    assert transaction.closed
    assert not transaction.committed
    with cowdb.open(path) as db:
        assert len(db) == 0
        with db.write() as transaction:  # who ends it himself knows
            transaction[b"k"] = b"v"
            transaction.abort()
        with db.write() as transaction:
            transaction[b"k"] = b"v"
            transaction.commit()
            assert transaction.committed
        with db.write():  # and nothing is lost of nothing
            db.close()
